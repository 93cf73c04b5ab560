//! Transfers that are interrupted, by the server or by the end of this process.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use basert_hub::{Error, PullOptions, Store, pull};
use serde_json::json;

use crate::server::{Reply, Repo, Server, sha256};
use crate::{Recorder, noise, quick, temp_store};

const MODEL: &str = "org/model";
const FILE: &str = "model-Q4_0.gguf";
const SIZE: usize = 1_000_000;

fn repo() -> Repo {
    Repo::new(&[(FILE, noise(SIZE, 11))])
}

#[test]
fn every_connection_is_cut_again_and_again() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| {
        let reply = served.reply(r);
        if r.is_file() { Reply { cut: Some(20_000), ..reply } } else { reply }
    });
    let (_dir, store) = temp_store();
    let model = pull(&store, MODEL, &quick(&server.address), &Recorder::default()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    // 16 segments of 64 KiB (the last one shorter), 20,000 bytes at a time, none twice.
    let asked = server.file_requests().len();
    assert!((61..=64).contains(&asked), "{asked} requests");
}

#[test]
fn a_stalled_connection_is_opened_again() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| {
        let reply = served.reply(r);
        if r.is_file() && r.earlier < 2 { Reply { stall: Some(30_000), ..reply } } else { reply }
    });
    let (_dir, store) = temp_store();
    let recorder = Recorder::default();
    let begin = Instant::now();
    let options = PullOptions { stall_timeout: Duration::from_millis(400), ..quick(&server.address) };
    let model = pull(&store, MODEL, &options, &recorder).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    assert!(begin.elapsed() >= Duration::from_millis(400));
    let notes = recorder.notes.lock().unwrap();
    assert!(notes.len() >= 2 && notes[0].contains("no bytes for too long"), "{notes:?}");
    let again = server.bytes_asked() - SIZE;
    assert!(again <= notes.len() * ((64 << 10) - 30_000), "what came before the stall is kept: {again}");
}

#[test]
fn a_server_that_ignores_ranges() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| {
        if !r.is_file() {
            return served.reply(r);
        }
        // Without ETag, so that it cannot be told from one that has another version. The first whole answer breaks off.
        let cut = (r.range().is_none() && r.earlier < 8).then_some(SIZE / 2);
        Reply { body: served.files[0].1.clone(), cut, ..Reply::status(200) }
    });
    let (_dir, store) = temp_store();
    let model = pull(&store, MODEL, &quick(&server.address), &Recorder::default()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
}

#[test]
fn too_short_a_content_length() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| {
        let mut reply = served.reply(r);
        if r.is_file() && r.earlier < 3 {
            reply.body.truncate(1000);
        }
        reply
    });
    let (_dir, store) = temp_store();
    let recorder = Recorder::default();
    let model = pull(&store, MODEL, &quick(&server.address), &recorder).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    assert!(recorder.notes.lock().unwrap()[0].contains("bytes early"));
}

#[test]
fn empty_answers_end_in_an_error() {
    let served = repo();
    let server = Server::start(move |r| {
        let reply = served.reply(r);
        if r.is_file() { Reply { body: Vec::new(), ..reply } } else { reply }
    });
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
    assert!(matches!(error, Error::Interrupted { done: 0, .. }), "{error}");
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    let repo = repo();
    let served = repo.clone();
    let ill = Arc::new(AtomicBool::new(true));
    let budget = Arc::new(AtomicUsize::new(400_000));
    let (is_ill, left) = (ill.clone(), budget.clone());
    let server = Server::start(move |r| {
        let reply = served.reply(r);
        if !r.is_file() || !is_ill.load(Ordering::SeqCst) {
            return reply;
        }
        let take = |left: usize| Some(left.saturating_sub(reply.body.len()));
        let cut = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap();
        Reply { cut: Some(cut), ..reply }
    });
    let (_dir, store) = temp_store();
    let options = quick(&server.address);
    let error = pull(&store, MODEL, &options, &()).unwrap_err();
    assert!(matches!(error, Error::Interrupted { done: 400_000, size: 1_000_000, .. }), "{error}");
    let left = store.incomplete().unwrap().remove(0);
    assert_eq!(left.reason, "the pull has not finished");
    assert!(matches!(store.resolve(MODEL), Err(Error::NotInstalled { .. })));

    ill.store(false, Ordering::SeqCst);
    server.forget();
    let recorder = Recorder::default();
    let model = pull(&store, MODEL, &options, &recorder).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    assert_eq!(server.bytes_asked(), SIZE - 400_000, "exactly the rest is fetched");
    assert_eq!(store.incomplete().unwrap().len(), 0);
}

#[test]
fn a_state_that_does_not_fit_means_beginning_again() {
    let repo = repo();
    let good = json!({
        "size": SIZE, "digest": sha256(&repo.files[0].1), "etag": null, "segment": 500_000, "done": [500_000, 500_000],
    });
    let with = |key: &str, value: serde_json::Value| {
        let mut state = good.clone();
        state[key] = value;
        state.to_string()
    };
    let cases = [
        (SIZE, String::new()),
        (SIZE, "{}".into()),
        (SIZE, with("size", json!(SIZE - 1))),
        (SIZE, with("digest", json!(sha256(b"another file")))),
        (SIZE, with("segment", json!(0))),
        (SIZE, with("done", json!([500_000, 500_001]))),
        (SIZE, with("done", json!([500_000]))),
        (SIZE, with("done", json!([500_000, -1]))),
        (SIZE - 1, good.to_string()),
    ];
    for (on_disk, state) in cases {
        let served = repo.clone();
        let server = Server::start(move |r| served.reply(r));
        let (_dir, store) = temp_store();
        let dir = store.root().join("org/model/Q4_0");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("model-Q4_0.gguf.partial"), noise(on_disk, 99)).unwrap();
        fs::write(dir.join("model-Q4_0.gguf.partial.json"), &state).unwrap();
        let model = pull(&store, MODEL, &quick(&server.address), &()).unwrap();
        assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1, "{state}");
        assert_eq!(server.bytes_asked(), SIZE, "{state}");
    }
}

/// What a link in the place of the partial file leads to is left alone.
#[test]
fn a_link_is_not_followed() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    let (_dir, store) = temp_store();
    let dir = store.root().join("org/model/Q4_0");
    fs::create_dir_all(&dir).unwrap();
    let other = store.root().join("diary.txt");
    fs::write(&other, "mine").unwrap();
    std::os::unix::fs::symlink(&other, dir.join("model-Q4_0.gguf.partial")).unwrap();
    let model = pull(&store, MODEL, &quick(&server.address), &()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    assert_eq!(fs::read_to_string(other).unwrap(), "mine");
}

#[test]
fn another_version_on_the_server_is_not_mixed_in() {
    // At first the server has stale content under another ETag, and fails; then the one that was announced.
    let repo = repo();
    let stale = noise(SIZE, 12);
    let old = Arc::new(AtomicBool::new(true));
    let (served, is_old) = (repo.clone(), old.clone());
    let server = Server::start(move |r| {
        if !r.is_file() || !is_old.load(Ordering::SeqCst) {
            return served.reply(r);
        }
        match r.earlier {
            0..3 => Reply::ranged(r, &stale, "\"stale\""),
            _ => Reply::status(500),
        }
    });
    let (_dir, store) = temp_store();
    let options = quick(&server.address);
    pull(&store, MODEL, &options, &()).unwrap_err();
    old.store(false, Ordering::SeqCst);
    server.forget();
    let model = pull(&store, MODEL, &options, &Recorder::default()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    let requests = server.file_requests();
    assert_eq!(requests[0].headers["if-range"], "\"stale\"");
}

#[test]
fn a_file_that_always_changes_is_given_up() {
    let served = repo();
    let server = Server::start(move |r| {
        if !r.is_file() {
            return served.reply(r);
        }
        Reply::ranged(r, &served.files[0].1, "").header("ETag", format!("\"{}\"", r.earlier))
    });
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
    assert!(error.to_string().contains("keeps changing"), "{error}");
}

#[test]
fn two_pulls_of_one_model_share_the_work() {
    let repo = repo();
    let served = repo.clone();
    let server = Server::start(move |r| {
        let reply = served.reply(r);
        if r.is_file() { Reply { pace: Some((4 << 10, Duration::from_millis(20))), ..reply } } else { reply }
    });
    let (_dir, store) = temp_store();
    let options = quick(&server.address);
    let recorders = [Recorder::default(), Recorder::default()];
    std::thread::scope(|scope| {
        for recorder in &recorders {
            scope.spawn(|| pull(&store, MODEL, &options, recorder).unwrap());
        }
        while server.file_requests().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(store.remove(MODEL), Err(Error::Busy { .. })));
    });
    assert_eq!(server.bytes_asked(), SIZE, "the file is fetched once");
    let notes: Vec<_> = recorders.iter().flat_map(|r| r.notes.lock().unwrap().clone()).collect();
    assert_eq!(notes, ["waiting for another pull of `org/model:Q4_0` to finish"]);
    store.remove(MODEL).unwrap();
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn child() {
    if let (Ok(root), Ok(address)) = (std::env::var("HUB_TEST_ROOT"), std::env::var("HUB_TEST_ADDRESS")) {
        let options = PullOptions { connections: 2, ..quick(&address) };
        pull(&Store::at(root), MODEL, &options, &()).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_what_it_had() {
    let repo = Repo::new(&[(FILE, noise(16_000_000, 13))]);
    let served = repo.clone();
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = slow.clone();
    let server = Server::start(move |r| {
        let pace = is_slow.load(Ordering::SeqCst).then_some((16 << 10, Duration::from_millis(10)));
        Reply { pace, ..served.reply(r) }
    });
    let (_dir, store) = temp_store();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "resume::child"])
        .env("HUB_TEST_ROOT", store.root())
        .env("HUB_TEST_ADDRESS", &server.address)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // About 3 MB a second: after the state has been written, but long before the end.
    let state = store.root().join("org/model/Q4_0/model-Q4_0.gguf.partial.json");
    let begin = Instant::now();
    while !state.exists() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the child pulls");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    let done: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let done: u64 = done["done"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert!(done > 0 && done < 16_000_000, "{done}");

    slow.store(false, Ordering::SeqCst);
    server.forget();
    let model = pull(&store, MODEL, &quick(&server.address), &Recorder::default()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), repo.files[0].1);
    assert_eq!(server.bytes_asked() as u64, 16_000_000 - done, "what the state speaks of is not fetched again");
}

//! Pulls from a hub: choice of files, refusals, and servers that break the protocol.

use std::fs;
use std::time::{Duration, Instant};

use basert_hub::{Check, Error, Origin, PullOptions, pull};

use crate::server::{Reply, Repo, Server, sha256};
use crate::{Recorder, noise, quick, temp_store};

const MODEL: &str = "org/model";

fn two_quantisations() -> Repo {
    Repo::new(&[
        ("README.md", b"read me".to_vec()),
        ("model-Q4_K_M.gguf", noise(700_000, 1)),
        ("model-Q8_0.gguf", noise(300_000, 2)),
    ])
}

#[test]
fn a_pull_lays_out_the_model_and_can_be_repeated_and_undone() {
    let repo = two_quantisations();
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    let (_dir, store) = temp_store();
    let recorder = Recorder::default();

    let model = pull(&store, MODEL, &quick(&server.address), &recorder).unwrap();
    assert_eq!(model.path, store.root().join("org/model/Q4_K_M/model-Q4_K_M.gguf"));
    assert_eq!(fs::read(&model.path).unwrap(), repo.files[1].1);
    assert_eq!((model.size, model.reference().as_str()), (700_000, "org/model:Q4_K_M"));
    assert!(server.file_requests().len() >= 700_000 / (64 << 10), "the file came in segments");
    assert_eq!(server.bytes_asked(), 700_000);
    let works: Vec<_> = recorder.works.lock().unwrap().iter().map(|w| (w.0.clone(), w.2)).collect();
    assert_eq!(works, [("model-Q4_K_M.gguf".into(), 700_000), ("verify model-Q4_K_M.gguf".into(), 700_000)]);

    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(model.dir.join("hub.json")).unwrap()).unwrap();
    assert_eq!(manifest["model"], "org/model");
    assert_eq!(manifest["variant"], "Q4_K_M");
    assert_eq!(manifest["origin"]["kind"], "huggingface");
    assert_eq!(manifest["origin"]["revision"], repo.commit);
    assert_eq!(manifest["files"][0]["sha256"], sha256(&repo.files[1].1));
    assert_eq!(manifest["files"][0]["size"], 700_000);
    assert!(manifest["pulled"].as_str().unwrap().ends_with('Z'));
    let mut names: Vec<_> = fs::read_dir(&model.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["hub.json", "model-Q4_K_M.gguf"], "nothing else is left");

    server.forget();
    let again = pull(&store, "ORG/model:q4_k_m", &quick(&server.address), &());
    // The hub of this test knows only the exact spelling.
    assert!(matches!(again, Err(Error::NotOnHub { .. })));
    assert_eq!(pull(&store, MODEL, &quick(&server.address), &()).unwrap().pulled, model.pulled);
    assert_eq!(server.file_requests().len(), 0, "nothing is fetched twice");

    let other = pull(&store, "org/model:q8_0", &quick(&server.address), &()).unwrap();
    assert_eq!(fs::read(&other.path).unwrap(), repo.files[2].1);
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(store.resolve("ORG/Model").unwrap().path, model.path);
    assert_eq!(store.resolve("model:Q8_0").unwrap().path, other.path);

    assert!(matches!(store.remove(MODEL), Err(Error::Ambiguous { .. })));
    assert!(store.remove("org/model:Q4_K_M").unwrap().size >= 700_000);
    assert_eq!(store.remove(MODEL).unwrap().reference, "org/model:Q8_0");
    assert!(!store.root().join("org").exists(), "empty folders go too");
    assert!(matches!(store.resolve(MODEL), Err(Error::NotInstalled { .. })));
}

#[test]
fn a_safetensors_folder_with_git_checksums() {
    let repo = Repo::new(&[
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("added_tokens.json", Vec::new()),
        ("tokenizer.json", noise(90_000, 3)),
        ("model-00001-of-00002.safetensors", noise(100_000, 4)),
        ("model-00002-of-00002.safetensors", noise(120_000, 5)),
        ("original/model.safetensors", noise(10, 6)),
        ("pytorch_model.bin", noise(10, 7)),
    ]);
    let served = repo.clone();
    let server = Server::start(move |r| served.reply(r));
    let (_dir, store) = temp_store();
    let model = pull(&store, MODEL, &quick(&server.address), &Recorder::default()).unwrap();
    assert_eq!(model.variant, "safetensors");
    assert_eq!(model.path, model.dir, "a folder is opened as a whole");
    assert_eq!(model.manifest.files.len(), 5);
    for (name, content) in &repo.files[..5] {
        assert_eq!(&fs::read(model.dir.join(name)).unwrap(), content, "{name}");
        let record = model.manifest.files.iter().find(|f| f.name == *name).unwrap();
        assert_eq!(String::from(record.sha256.clone()), sha256(content), "sha256 is recorded for every file");
    }
    assert!(
        matches!(&model.manifest.origin, Origin::Huggingface { endpoint, .. } if endpoint.starts_with(&server.address))
    );
}

#[test]
fn a_wrong_byte_is_found_and_the_download_deleted() {
    for (name, algorithm) in [("model-Q4_0.gguf", "sha256"), ("config.json", "git-sha1")] {
        let repo = Repo::new(&[("config.json", noise(500, 1)), ("model.safetensors", noise(10, 2))]);
        let mut repo = if name == "config.json" { repo } else { Repo::new(&[("model-Q4_0.gguf", noise(200_000, 1))]) };
        let listing = repo.listing().to_string();
        let content = &mut repo.files.iter_mut().find(|(path, _)| *path == name).unwrap().1;
        *content.last_mut().unwrap() ^= 1;
        let got = sha256(content);
        let server = Server::start(move |r| match r.is_file() {
            true => repo.reply(r),
            false => Reply { body: listing.clone().into(), ..Reply::status(200) },
        });
        let (_dir, store) = temp_store();
        let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(algorithm), "{text}");
        if algorithm == "sha256" {
            assert!(text.contains(&got), "{text}");
        }
        let Error::Checksum { expected, got, .. } = error else { panic!("{text}") };
        assert_ne!(expected, got);
        let left = store.incomplete().unwrap().remove(0);
        assert_eq!(store.list().unwrap().len(), 0);
        assert!(!left.dir.join(format!("{name}.partial")).exists());
        assert!(!left.dir.join(format!("{name}.partial.json")).exists());
        store.remove("org/model").unwrap();
    }
}

#[test]
fn the_token_stays_with_the_hub() {
    let content = noise(200_000, 9);
    let cdn_content = content.clone();
    let cdn = Server::start(move |r| Reply::ranged(r, &cdn_content, "\"cdn\""));
    let target = cdn.address.clone();
    let repo = Repo::new(&[("model-Q4_0.gguf", content.clone())]);
    let server = Server::start(move |r| match r.is_file() {
        true => Reply::status(302).header("Location", format!("{target}/blob/resolve/x?signature=secret")),
        false => repo.reply(r),
    });
    let (_dir, store) = temp_store();
    let mut options = quick(&server.address);
    options.token = Some("hf_secret\n".into());
    let model = pull(&store, MODEL, &options, &()).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), content);
    assert!(server.requests().iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
    assert!(!cdn.requests().is_empty());
    assert!(cdn.requests().iter().all(|r| !r.headers.contains_key("authorization")));
}

#[test]
fn redirects_in_circles_end() {
    let server = Server::start(|r| Reply::status(302).header("Location", r.path.clone()));
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err().to_string();
    assert!(error.contains("circles"), "{error}");
    assert!(server.requests().len() < 20);
}

#[test]
fn rate_limits_are_honoured() {
    let repo = Repo::new(&[("model-Q4_0.gguf", noise(50_000, 1))]);
    let server = Server::start(move |r| match (r.is_file(), r.earlier) {
        (false, 0) => Reply::status(429).header("Retry-After", "1"),
        (true, 0) => Reply::status(503),
        (true, 1) => Reply::status(500),
        _ => repo.reply(r),
    });
    let (_dir, store) = temp_store();
    let recorder = Recorder::default();
    let begin = Instant::now();
    pull(&store, MODEL, &quick(&server.address), &recorder).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let notes = recorder.notes.lock().unwrap();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains("429") && notes[0].contains("1.0 s"), "{notes:?}");
}

#[test]
fn too_long_a_wait_is_refused() {
    let server = Server::start(|_| Reply::status(429).header("Retry-After", "3600"));
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
    assert!(matches!(&error, Error::RateLimited { wait, .. } if wait.as_secs() == 3600), "{error}");
}

#[test]
fn a_server_that_stays_ill_is_given_up() {
    let server = Server::start(|_| Reply::status(502));
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
    assert!(matches!(error, Error::Http { status: 502, .. }), "{error}");
    assert_eq!(server.requests().len(), 4, "one try and three retries");
}

#[test]
fn nobody_answers() {
    let address = Server::start(|_| Reply::status(200)).address.clone();
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&address), &()).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
}

#[test]
fn unusable_options() {
    let (_dir, store) = temp_store();
    for (endpoint, token, expected) in [
        ("nonsense", "", "HF_ENDPOINT must be an http or https address, not `nonsense`"),
        ("ftp://host", "", "HF_ENDPOINT must be"),
        ("http://127.0.0.1:9", "a\nb", "HF_TOKEN has characters"),
    ] {
        let options = basert_hub::PullOptions { token: Some(token.into()), ..quick(endpoint) };
        let error = pull(&store, MODEL, &options, &()).unwrap_err();
        assert!(error.to_string().contains(expected) && error.is_user_mistake(), "{error}");
        assert!(!error.to_string().contains("a\nb"), "a token is never shown");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let cases = [
        (Reply::status(403).header("X-Error-Message", "Access is restricted"), "accept its licence"),
        (Reply::status(401).header("X-Error-Code", "GatedRepo"), "HF_TOKEN"),
        (Reply::status(401).header("X-Error-Code", "RepoNotFound"), "has no `org/model`"),
        (Reply::status(404).header("X-Error-Message", "Repository not found"), "Repository not found"),
        (Reply::status(418), "418"),
        (Reply { body: b"[]".to_vec(), ..Reply::status(200) }, "expected the hub's JSON"),
        (Reply { body: b"{\"sha\": \"../..\", \"siblings\": []}".to_vec(), ..Reply::status(200) }, "commit id"),
        (Reply { body: b"{\"sha\": \"c0ffee\", \"siblings\": []}".to_vec(), ..Reply::status(200) }, "holds none"),
    ];
    for (reply, expected) in cases {
        let server = Server::start(move |_| reply.clone());
        let (_dir, store) = temp_store();
        let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(server.requests().len(), 1, "{expected}: no retry");
        assert!(!store.root().exists(), "{expected}: nothing is written");
    }
}

#[test]
fn a_gated_repository_lists_its_files_but_does_not_give_them() {
    let repo = two_quantisations();
    let server = Server::start(move |r| match r.is_file() {
        true => {
            Reply::status(403).header("X-Error-Code", "GatedRepo").header("X-Error-Message", "Access is restricted")
        }
        false => repo.reply(r),
    });
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
    assert!(matches!(&error, Error::Gated { message, .. } if message == "Access is restricted"), "{error}");
    assert!(server.file_requests().len() <= 4, "no retry");
}

#[test]
fn an_unknown_variant_lists_the_known_ones() {
    let repo = two_quantisations();
    let server = Server::start(move |r| repo.reply(r));
    let (_dir, store) = temp_store();
    let error = pull(&store, "org/model:Q5_0", &quick(&server.address), &()).unwrap_err();
    assert_eq!(error.to_string(), "`org/model` has no variant `Q5_0`; it has Q4_K_M and Q8_0");
    assert!(error.is_user_mistake());
}

#[test]
fn hostile_listings() {
    let digest = "0".repeat(64);
    for name in
        ["../../evil-Q4_0.gguf", "/tmp/evil-Q4_0.gguf", "a/../evil-Q4_0.gguf", ".evil-Q4_0.gguf", "evil\u{0}-Q4_0.gguf"]
    {
        let file = serde_json::json!({"rfilename": name, "lfs": {"sha256": digest, "size": 10}});
        let listing = serde_json::json!({"sha": "c0ffee", "siblings": [file]}).to_string();
        let server = Server::start(move |_| Reply { body: listing.clone().into(), ..Reply::status(200) });
        let (dir, store) = temp_store();
        let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
        assert!(matches!(error, Error::UnsafeName { .. }), "{name}: {error}");
        assert_eq!(server.file_requests().len(), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    // More bytes than any disk has.
    let file = serde_json::json!({"rfilename": "m-Q4_0.gguf", "lfs": {"sha256": digest, "size": u64::MAX}});
    let listing = serde_json::json!({"sha": "c0ffee", "siblings": [file]}).to_string();
    let server = Server::start(move |_| Reply { body: listing.clone().into(), ..Reply::status(200) });
    let (_dir, store) = temp_store();
    let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err().to_string();
    assert!(error.contains("the download needs 18.4 EB"), "{error}");
    assert_eq!(server.file_requests().len(), 0);
}

#[test]
fn mirrors_that_say_less_than_the_hub() {
    let name = "my model (v1) Q4_0.gguf";
    let content = noise(150_000, 8);
    let digest = sha256(&content);
    for (listed, tag, notes) in [
        // Names alone; the tag of the file is its sha256, as the hub's own tags are.
        (serde_json::json!({"rfilename": name}), format!("\"{digest}\""), 0),
        (serde_json::json!({"rfilename": name}), "\"some-tag\"".to_owned(), 1),
        (serde_json::json!({"rfilename": name, "size": content.len()}), "\"some-tag\"".to_owned(), 1),
        (
            serde_json::json!({"rfilename": name, "lfs": {"oid": format!("sha256:{digest}"), "size": content.len()}}),
            "\"some-tag\"".to_owned(),
            0,
        ),
    ] {
        let listing = serde_json::json!({"siblings": [listed]}).to_string();
        let served = content.clone();
        let server = Server::start(move |r| match r.is_file() {
            true => Reply::ranged(r, &served, &tag),
            false => Reply { body: listing.clone().into(), ..Reply::status(200) },
        });
        let (_dir, store) = temp_store();
        let recorder = Recorder::default();
        let model = pull(&store, MODEL, &quick(&server.address), &recorder).unwrap();
        assert_eq!((model.variant.as_str(), fs::read(&model.path).unwrap()), ("Q4_0", content.clone()));
        let told = recorder.notes.lock().unwrap();
        assert_eq!(told.iter().filter(|note| note.contains("cannot be checked")).count(), notes, "{told:?}");
        assert!(server.file_requests().iter().all(|r| r.path.contains("/resolve/main/my%20model%20(v1)%20Q4_0.gguf")));
        // What was not checked is known again by its size.
        server.forget();
        pull(&store, MODEL, &quick(&server.address), &()).unwrap();
        assert!(server.bytes_asked() <= 1);
    }
}

#[test]
fn a_page_is_not_a_model() {
    let repo = Repo::new(&[("model-Q4_0.gguf", noise(50_000, 1))]);
    let page = || {
        Reply { body: b"\n <!DOCTYPE html>Log in".to_vec(), ..Reply::status(200) }.header("Content-Type", "text/html")
    };
    for of_files in [false, true] {
        let repo = repo.clone();
        let server = Server::start(move |r| if r.is_file() == of_files { page() } else { repo.reply(r) });
        let (_dir, store) = temp_store();
        let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err().to_string();
        assert!(error.contains("an HTML page came instead") && error.contains("login"), "{error}");
    }
}

#[test]
fn a_model_is_looked_at_before_it_is_fetched() {
    let content = noise(1_000_000, 4);
    let repo = Repo::new(&[("model-Q4_0.gguf", content.clone())]);
    let server = Server::start(move |r| repo.reply(r));
    let (_dir, store) = temp_store();
    let refusing: Check = |preview| {
        assert_eq!((preview.size, preview.file), (1_000_000, "model-Q4_0.gguf"));
        assert!(preview.head.len() >= 4096 && preview.head == &noise(1_000_000, 4)[..preview.head.len()]);
        Err("it is not for us".into())
    };
    let options = PullOptions { check: Some(refusing), ..quick(&server.address) };
    let error = pull(&store, MODEL, &options, &()).unwrap_err().to_string();
    assert_eq!(error, "`org/model:Q4_0` is not downloaded: it is not for us");
    assert!(server.bytes_asked() <= 1 << 16);
    assert_eq!(store.incomplete().unwrap().len(), 0, "nothing is left behind");
    let options = PullOptions { check: Some(|_| Ok(())), ..options };
    let model = pull(&store, MODEL, &options, &()).unwrap();
    assert_eq!(fs::read(&model.path).unwrap(), content);
    // What is here already is not looked at again.
    let options = PullOptions { check: Some(refusing), ..options };
    pull(&store, MODEL, &options, &()).unwrap();
}

#[test]
fn nothing_is_fetched_offline() {
    let server = Server::start(|_| Reply::status(200));
    let (_dir, store) = temp_store();
    let options = PullOptions { offline: Some("HF_HUB_OFFLINE"), ..quick(&server.address) };
    for model in [MODEL, "smollm2-135m"] {
        let error = pull(&store, model, &options, &()).unwrap_err().to_string();
        assert_eq!(error, "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it to pull");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn answers_that_break_the_protocol() {
    type Spoil = fn(Reply) -> Reply;
    let cases: [(usize, Spoil, &str); 5] = [
        (
            200_000,
            |r| r.header("Content-Range", "bytes 7-65542/200000"),
            "Content-Range is `bytes 7-65542/200000`, expected",
        ),
        (200_000, |r| r.header("Content-Range", "bytes 0-65535/99"), "/200000`"),
        (200_000, |r| Reply { headers: vec![], ..r }, "Content-Range is `none`"),
        (200_000, |r| r.header("Content-Encoding", "gzip"), "encoded as gzip"),
        (1000, |r| Reply { declared: Some(1001), ..r }, "has 1001 bytes, the listing says 1000"),
    ];
    for (size, spoil, expected) in cases {
        let repo = Repo::new(&[("model-Q4_0.gguf", noise(size, 1))]);
        let server = Server::start(move |r| if r.is_file() { spoil(repo.reply(r)) } else { repo.reply(r) });
        let (_dir, store) = temp_store();
        let error = pull(&store, MODEL, &quick(&server.address), &()).unwrap_err();
        assert!(matches!(error, Error::BadResponse { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_update_keeps_the_old_version_until_the_new_one_is_complete() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let old = Repo::new(&[
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", noise(100_000, 1)),
        ("tokenizer.json", noise(5000, 2)),
    ]);
    let mut new = Repo::new(&[("config.json", b"{}".to_vec()), ("model.safetensors", noise(110_000, 3))]);
    new.commit = "c0ffee0000000000000000000000000000000002";
    let phase = Arc::new(AtomicUsize::new(0));
    let (served, now) = ([old.clone(), new.clone()], phase.clone());
    let server = Server::start(move |r| match now.load(Ordering::SeqCst) {
        0 => served[0].reply(r),
        // The new version's weights fail at first.
        1 if r.is_file() => Reply::status(500),
        _ => served[1].reply(r),
    });
    let (_dir, store) = temp_store();
    let options = quick(&server.address);
    let first = pull(&store, MODEL, &options, &()).unwrap();

    phase.store(1, Ordering::SeqCst);
    assert!(matches!(pull(&store, MODEL, &options, &()), Err(Error::Http { status: 500, .. })));
    let still = store.resolve(MODEL).unwrap().installed.unwrap();
    assert_eq!(still.manifest, first.manifest);
    assert_eq!(fs::read(still.dir.join("model.safetensors")).unwrap(), old.files[1].1);

    phase.store(2, Ordering::SeqCst);
    server.forget();
    let second = pull(&store, MODEL, &options, &()).unwrap();
    assert!(server.file_requests().iter().all(|r| r.path.ends_with("model.safetensors")), "config.json is unchanged");
    assert_eq!(fs::read(second.dir.join("model.safetensors")).unwrap(), new.files[1].1);
    assert!(!second.dir.join("tokenizer.json").exists(), "the new version has none");
    assert!(matches!(&second.manifest.origin, Origin::Huggingface { revision, .. } if revision == new.commit));
}

#[test]
fn files_without_a_manifest_are_recognised_by_their_content() {
    let repo = two_quantisations();
    let server = Server::start(move |r| repo.reply(r));
    let (_dir, store) = temp_store();
    let model = pull(&store, MODEL, &quick(&server.address), &()).unwrap();
    fs::remove_file(model.dir.join("hub.json")).unwrap();
    assert_eq!(store.list().unwrap().len(), 0);
    server.forget();
    assert_eq!(pull(&store, MODEL, &quick(&server.address), &()).unwrap().manifest.files, model.manifest.files);
    assert_eq!(server.file_requests().len(), 0);
}

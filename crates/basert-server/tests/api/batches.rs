//! Files and batches.

use std::time::Duration;

use basert_server::Config;
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::server::{Running, config, tiny};

fn upload(server: &Running, content: &str) -> (u16, Value) {
    let part = Part::text(content.to_owned()).file_name("requests.jsonl");
    let form = Form::new().text("purpose", "batch").part("file", part);
    let response = server.form("/v1/files", form).send().unwrap();
    (response.status().as_u16(), serde_json::from_str(&response.text().unwrap()).unwrap())
}

fn line(id: usize, body: Value) -> String {
    json!({ "custom_id": format!("r{id}"), "method": "POST", "url": "/v1/completions", "body": body }).to_string()
        + "\n"
}

fn read(server: &Running, path: &str) -> Value {
    serde_json::from_str(&server.get(path).send().unwrap().text().unwrap()).unwrap()
}

fn wait(server: &Running, batch: &Value) -> Value {
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    for _ in 0..1000 {
        let batch = read(server, &path);
        if !["in_progress", "cancelling"].contains(&batch["status"].as_str().unwrap()) {
            return batch;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the batch does not end");
}

fn begin(server: &Running, content: &str) -> Value {
    let (status, file) = upload(server, content);
    assert_eq!(status, 200, "{file}");
    let batch = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    server.ask("/v1/batches", &batch)
}

#[test]
fn a_batch_is_answered_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let with = || Config { files: Some(folder.path().to_owned()), ..config() };
    let server = Running::with(with(), "batch", tiny);
    let ask =
        |i: usize| json!({ "prompt": format!("Number {i}"), "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    let mut lines: String = (0..20).map(|i| line(i, ask(i))).collect();
    lines += &line(20, json!({ "prompt": "x", "frobnicate": 1 }));
    let batch = wait(&server, &begin(&server, &lines));
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("completed"), &json!({ "total": 21, "completed": 20, "failed": 1 }))
    );
    let content = |name: &str| {
        let path = format!("/v1/files/{}/content", batch[name].as_str().unwrap());
        let text = server.get(&path).send().unwrap().text().unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let (good, bad) = (content("output_file_id"), content("error_file_id"));
    assert_eq!((good.len(), bad.len()), (20, 1));
    for (i, answer) in good.iter().enumerate() {
        assert_eq!(answer["custom_id"], format!("r{i}"));
        let alone = server.ask("/v1/completions", &ask(i));
        assert_eq!(answer["response"]["body"]["choices"], alone["choices"]);
    }
    assert_eq!(bad[0]["response"]["status_code"], 400);
    assert!(bad[0]["response"]["body"]["error"]["message"].as_str().unwrap().contains("frobnicate"));
    // What is kept is there for the next server.
    drop(server);
    let server = Running::with(with(), "batch two", tiny);
    assert_eq!(read(&server, &format!("/v1/batches/{}", batch["id"].as_str().unwrap())), batch);
    assert_eq!(read(&server, "/v1/batches")["data"].as_array().unwrap().len(), 1);
    assert_eq!(read(&server, "/v1/files")["data"].as_array().unwrap().len(), 3);
}

#[test]
fn a_batch_that_is_wrong_says_where_and_one_that_is_cancelled_ends() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::with(Config { files: Some(folder.path().to_owned()), ..config() }, "wrong batch", tiny);
    let good = json!({ "prompt": "x", "max_tokens": 900, "ignore_eos": true });
    for (content, line_number, part) in [
        (line(1, good.clone()) + "{}\n", 2, "missing field"),
        (line(1, good.clone()) + &line(1, good.clone()), 2, "twice"),
        (line(1, json!({ "stream": true })), 1, "stream"),
        (String::new(), 1, "no requests"),
    ] {
        let batch = begin(&server, &content);
        let error = &batch["errors"]["data"][0];
        assert_eq!((&batch["status"], &error["line"]), (&json!("failed"), &json!(line_number)), "{batch}");
        assert!(error["message"].as_str().unwrap().contains(part), "{batch}");
    }
    let batch = begin(&server, &(0..200).map(|i| line(i, good.clone())).collect::<String>());
    let cancelled = server.ask(&format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap()), &json!({}));
    assert_eq!(cancelled["status"], "cancelling");
    assert_eq!(wait(&server, &batch)["status"], "cancelled");
    server.wait_for("basert_kv_pages_held", 0.0);
}

#[test]
fn files_are_their_owners_and_nothing_else_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let keys = vec!["one".to_owned(), "two".to_owned()];
    let config = Config { files: Some(folder.path().to_owned()), api_keys: keys, body_limit: 2_000, ..config() };
    let mut server = Running::with(config, "owners", tiny);
    let (_, file) = upload(&server, "content");
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(server.get(&format!("{path}/content")).send().unwrap().text().unwrap(), "content");
    server.key = Some("two".to_owned());
    assert_eq!(server.get(&path).send().unwrap().status(), 404);
    assert_eq!(read(&server, "/v1/files")["data"], json!([]));
    for id in ["..%2F..%2Fetc%2Fpasswd", "file-..%2F", "file-00000000000000000000000000000000", "x"] {
        assert_eq!(server.get(&format!("/v1/files/{id}/content")).send().unwrap().status(), 404, "{id}");
    }
    // Small enough to be sent at once, for it is refused before all of it is read.
    assert_eq!(upload(&server, &"x".repeat(3_000)).0, 413);
    server.key = Some("one".to_owned());
    assert_eq!(server.delete(&path).send().unwrap().status(), 200);
    assert_eq!(server.get(&path).send().unwrap().status(), 404);
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    drop(server);
    let without = Running::start("no files");
    assert_eq!(without.get("/v1/files").send().unwrap().status(), 501);
}

#[test]
fn the_next_server_goes_on_with_a_batch_and_loses_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let with = || Config { files: Some(folder.path().to_owned()), parallel: 2, ..config() };
    let ask = |i: usize| json!({ "prompt": format!("Number {i}"), "max_tokens": 200, "ignore_eos": true });
    let server = Running::with(with(), "batch begun", tiny);
    let mut lines: String = (0..40).map(|i| line(i, ask(i))).collect();
    lines += &line(40, json!({ "prompt": "x", "frobnicate": 1 }));
    let mut batch = begin(&server, &lines);
    let id = batch["id"].as_str().unwrap().to_owned();
    let written = folder.path().join(format!("{id}.good"));
    let lines_in = |text: &str| text.lines().count();
    let answered = |server: &Running, least: u64| {
        for _ in 0..1000 {
            let counts = &read(server, &format!("/v1/batches/{id}"))["request_counts"];
            if counts["completed"].as_u64().unwrap() >= least {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("there are no answers");
    };
    answered(&server, 3);
    // At once, as if it had been killed; and amid an answer that is written.
    drop(server);
    let first = std::fs::read_to_string(&written).unwrap();
    assert!((3..40).contains(&lines_in(&first)), "{first}");
    std::fs::write(&written, format!("{first}{{\"id\":\"half")).unwrap();
    let mut server = Running::with(with(), "batch goes on", tiny);
    answered(&server, lines_in(&first) as u64 + 3);
    // And patiently.
    server.stop.drain();
    server.join();
    let second = std::fs::read_to_string(&written).unwrap();
    assert!(second.starts_with(&first) && second.ends_with('\n') && lines_in(&second) < 40, "{second}");
    let server = Running::with(with(), "batch ends", tiny);
    batch = wait(&server, &batch);
    assert_eq!(batch["status"], "completed");
    assert_eq!(batch["request_counts"], json!({ "total": 41, "completed": 40, "failed": 1 }));
    let path = format!("/v1/files/{}/content", batch["output_file_id"].as_str().unwrap());
    let all = server.get(&path).send().unwrap().text().unwrap();
    assert!(all.starts_with(&second));
    let ids: Vec<String> = all
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, (0..40).map(|i| format!("r{i}")).collect::<Vec<_>>());
}

#[test]
fn a_request_that_ends_the_server_twice_ends_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let with = || Config { files: Some(folder.path().to_owned()), parallel: 1, ..config() };
    let endless = |i| line(i, json!({ "prompt": "x", "max_tokens": 1000, "ignore_eos": true, "n": 1, "min_p": 0.0 }));
    let server = Running::with(with(), "deadly", tiny);
    let batch = begin(&server, &(0..50).map(endless).collect::<String>());
    let mark = folder.path().join("running");
    assert!(mark.exists());
    drop(server);
    assert!(!mark.exists());
    let answers = folder.path().join(format!("{}.good", batch["id"].as_str().unwrap()));
    let before = std::fs::read_to_string(&answers).unwrap_or_default();
    // As if each server but the last had been killed.
    for (name, status) in [("deadly again", "in_progress"), ("deadly at last", "failed")] {
        std::fs::write(&mark, "").unwrap();
        let server = Running::with(with(), name, tiny);
        let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
        if status == "in_progress" {
            server.wait_for("basert_running_answers", 1.0);
        } else {
            assert_eq!(wait(&server, &batch)["errors"]["data"][0]["code"], "interrupted");
        }
        assert_eq!(read(&server, &path)["status"], status);
        drop(server);
        // In between no answer was completed.
        if answers.exists() {
            std::fs::write(&answers, &before).unwrap();
        }
    }
}

#[test]
fn a_request_that_takes_longer_than_servers_take_to_stop_ends_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let drain_timeout = Duration::from_millis(1);
    let with = || Config { files: Some(folder.path().to_owned()), drain_timeout, ..config() };
    let long = json!({ "prompt": "x", "max_tokens": 1000, "ignore_eos": true, "n": 8 });
    let mut server = Running::with(with(), "stopped", tiny);
    let batch = begin(&server, &line(0, long));
    for name in ["stopped once", "stopped twice", "stopped thrice"] {
        server.wait_for("basert_running_answers", 8.0);
        server.stop.drain();
        server.join();
        server = Running::with(with(), name, tiny);
    }
    let batch = wait(&server, &batch);
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(1)), "{batch}");
}

#[test]
fn a_batch_waits_while_its_file_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let with = || Config { files: Some(folder.path().to_owned()), parallel: 1, ..config() };
    let server = Running::with(with(), "file there", tiny);
    let short = json!({ "prompt": "x", "max_tokens": 300, "ignore_eos": true });
    let batch = begin(&server, &(0..20).map(|i| line(i, short.clone())).collect::<String>());
    drop(server);
    let file = folder.path().join(format!("{}.data", batch["input_file_id"].as_str().unwrap()));
    let away = folder.path().join("away");
    std::fs::rename(&file, &away).unwrap();
    std::fs::create_dir(&file).unwrap();
    let server = Running::with(with(), "file away", tiny);
    std::thread::sleep(Duration::from_millis(300));
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    assert_eq!(read(&server, &path)["status"], "in_progress");
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&away, &file).unwrap();
    assert_eq!(wait(&server, &batch)["status"], "completed");
    // A file that was deleted will never be read.
    let batch = begin(&server, &(0..20).map(|i| line(i, short.clone())).collect::<String>());
    drop(server);
    std::fs::remove_file(folder.path().join(format!("{}.data", batch["input_file_id"].as_str().unwrap()))).unwrap();
    let batch = wait(&Running::with(with(), "file gone", tiny), &batch);
    assert_eq!((&batch["status"], &batch["errors"]["data"][0]["code"]), (&json!("failed"), &json!("interrupted")));
}

#[test]
fn lists_come_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    let keys = vec!["one".to_owned(), "two".to_owned()];
    let config = || Config { files: Some(folder.path().to_owned()), api_keys: keys.clone(), ..config() };
    let mut server = Running::with(config(), "pages", tiny);
    let ids = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut made: Vec<String> = (0..5).map(|_| upload(&server, "x").1["id"].as_str().unwrap().to_owned()).collect();
    let broken: Vec<String> = (0..3).map(|_| begin(&server, "{}")["id"].as_str().unwrap().to_owned()).collect();
    server.key = Some("two".to_owned());
    upload(&server, "x");
    server.key = Some("one".to_owned());
    let whole = read(&server, "/v1/files");
    let all = ids(&whole);
    assert_eq!((all.len(), &whole["has_more"], &whole["first_id"]), (8, &json!(false), &json!(all[0])));
    made.retain(|id| !all.contains(id));
    assert!(made.is_empty(), "{made:?}");
    let created: Vec<u64> =
        whole["data"].as_array().unwrap().iter().map(|f| f["created_at"].as_u64().unwrap()).collect();
    assert!(created.is_sorted_by(|a, b| a >= b), "the newest first: {created:?}");
    // The next server knows of them as well.
    drop(server);
    let server = Running::with(config(), "pages again", tiny);
    let first = read(&server, "/v1/files?limit=3");
    assert_eq!((ids(&first), &first["has_more"], &first["last_id"]), (all[..3].to_vec(), &json!(true), &json!(all[2])));
    let second = read(&server, &format!("/v1/files?limit=5&after={}", all[2]));
    assert_eq!((ids(&second), &second["has_more"]), (all[3..].to_vec(), &json!(false)));
    let mut old = ids(&read(&server, &format!("/v1/files?order=asc&after={}&purpose=batch", all[6])));
    old.reverse();
    assert_eq!(old, all[..6]);
    assert_eq!(ids(&read(&server, "/v1/files?purpose=other")), [""; 0]);
    let batches = ids(&read(&server, "/v1/batches"));
    assert!(batches.len() == 3 && broken.iter().all(|id| batches.contains(id)), "{batches:?}");
    let last = read(&server, &format!("/v1/batches?limit=2&after={}", batches[0]));
    assert_eq!((ids(&last), &last["has_more"]), (batches[1..].to_vec(), &json!(false)));
    for (query, param) in [
        ("files?limit=0", "limit"),
        ("files?limit=10001", "limit"),
        ("files?limit=x", "limit"),
        ("files?order=up", "order"),
        ("files?after=file-1", "after"),
        ("files?colour=red", "colour"),
        ("batches?limit=101", "limit"),
        ("batches?order=asc", "order"),
    ] {
        let response = server.get(&format!("/v1/{query}")).send().unwrap();
        assert_eq!(response.status(), 400, "{query}");
        let answer: Value = serde_json::from_str(&response.text().unwrap()).unwrap();
        assert_eq!(answer["error"]["param"], param, "{query}: {answer}");
    }
    server.delete(&format!("/v1/files/{}", all[0])).send().unwrap();
    assert_eq!(ids(&read(&server, "/v1/files?limit=1")), all[1..2]);
}

#[test]
fn a_client_may_have_so_many_batches() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { files: Some(folder.path().to_owned()), parallel: 1, ..config() };
    let server = Running::with(config, "many batches", tiny);
    let long = json!({ "prompt": "x", "max_tokens": 900, "ignore_eos": true });
    let first = begin(&server, &(0..100).map(|i| line(i, long.clone())).collect::<String>());
    let again =
        json!({ "input_file_id": first["input_file_id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let responses: Vec<_> = (0..16).map(|_| server.post("/v1/batches", &again).send().unwrap()).collect();
    let last = responses.last().unwrap();
    assert_eq!((responses[14].status().as_u16(), last.status().as_u16()), (200, 429));
    assert_eq!(last.headers()["retry-after"], "60");
    let other = server.refused(
        "/v1/batches",
        &json!({ "input_file_id": "x", "endpoint": "/v1/completions", "completion_window": "24h", "metadata": [[]] }),
    );
    assert_eq!((other.0, &other.1["error"]["param"]), (400, &json!("metadata")));
}

//! Models that are fetched, checked and kept, as a user does it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{Run, basert, command, in_store, run, store};

/// A hub that has one file, `model-Q4_0.gguf` of `org/name`, for as long as the test runs.
fn hub(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let is_file = lines.next().is_some_and(|line| line.contains("/resolve/"));
            lines.find(|line| line.is_empty());
            let listing = json!({ "siblings": [{ "rfilename": "model-Q4_0.gguf", "size": content.len() }] });
            let body = if is_file { content.clone() } else { listing.to_string().into_bytes() };
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&body));
        }
    });
    address
}

fn pull(store: &Path, endpoint: &str, arguments: &[&str]) -> Run {
    let mut command = command(&[&["pull"], arguments].concat());
    command.env("BASERT_MODELS_DIR", store).env("HF_ENDPOINT", endpoint).env("NO_PROXY", "127.0.0.1");
    run(command, "")
}

#[test]
fn a_model_of_unknown_architecture_is_not_fetched_unasked() {
    let store = tempfile::tempdir().unwrap();
    let mut content = fs::read(basert_testkit::tiny().join("llama.gguf")).unwrap();
    let endpoint = hub(content.clone());
    assert!(pull(store.path(), &endpoint, &["https://huggingface.co/org/name"]).ok().starts_with("org/name:Q4_0"));

    let at = content.windows(5).position(|bytes| bytes == b"llama").unwrap();
    content[at..at + 5].copy_from_slice(b"ze\x1b[m");
    let endpoint = hub(content);
    let other = tempfile::tempdir().unwrap();
    let refused = pull(other.path(), &endpoint, &["hf.co/org/name:latest"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("architecture 'ze␛[m' is not supported; supported are") && refused.err.contains("--force")
    );
    assert_eq!(in_store(other.path(), &["list"]).ok().matches("org/name").count(), 0);
    assert!(pull(other.path(), &endpoint, &["org/name", "--force"]).ok().contains("org/name:Q4_0"));
    let refused = pull(tempfile::tempdir().unwrap().path(), &hub(b"a page of text".to_vec()), &["org/name"]);
    assert!(refused.code == Some(1) && refused.err.contains("is not a GGUF file"), "{}", refused.err);
}

#[test]
fn proxies_are_used_and_nothing_is_fetched_offline() {
    let store = tempfile::tempdir().unwrap();
    let with = |variables: &[(&str, &str)]| {
        let mut command = command(&["pull", "org/name"]);
        command.env("BASERT_MODELS_DIR", store.path()).env("HF_ENDPOINT", "http://hub.test");
        for name in ["HTTP_PROXY", "http_proxy", "all_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        run(command, "")
    };
    let refused = with(&[("ALL_PROXY", "socks5h://127.0.0.1:1")]);
    assert!(refused.code == Some(1) && refused.err.contains("refused"), "{}", refused.err);
    let offline = with(&[("HF_HUB_OFFLINE", "1")]).fails(2);
    assert!(offline.contains("HF_HUB_OFFLINE is set"), "{offline}");
}

#[test]
fn no_program_comes_from_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (mark, python) = (folder.path().join("mark"), folder.path().join("python3"));
    fs::write(&python, format!("#!/bin/sh\ntouch '{}'\n", mark.display())).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&python, executable).unwrap();
    for path in ["", ".", ":/nowhere:"] {
        let mut command = command(&["pull", "smollm2-135m"]);
        command.current_dir(folder.path()).env("PATH", path).env("BASERT_MODELS_DIR", folder.path().join("models"));
        let error = run(command, "").fails(1);
        assert!(error.contains("no Python runs here"), "{error}");
    }
    assert!(!mark.exists());
}

#[test]
fn a_model_is_compared_with_what_was_pulled() {
    let store = store();
    assert!(in_store(store.path(), &["verify", "smollm2-135m"]).ok().contains("match their checksums"));
    let file = store.path().join("HuggingFaceTB/SmolLM2-135M-Instruct/Q4_1/SmolLM2-135M-Instruct.Q4_1.gguf");
    let mut bytes = fs::read(&file).unwrap();
    // The file is a link to that of all tests.
    fs::remove_file(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = in_store(store.path(), &["verify", "smollm2-135m"]);
    assert!(error.code == Some(1) && error.err.contains("but had b179c952"), "{}", error.err);
    let planned = in_store(store.path(), &["plan", "smollm2-135m", "--summary"]);
    assert!(
        planned.err.contains("was changed after the model was pulled; `basert verify smollm2-135m`"),
        "{}",
        planned.err
    );
    assert!(basert(&["verify", "/dev/null"]).fails(2).contains("was not pulled"));
}

#[test]
fn what_an_earlier_version_kept_is_moved_once() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join(".cache/baseRT")).unwrap();
    let models = store();
    let old = home.path().join(".cache/baseRT/models");
    let copied = Command::new("cp").arg("-R").arg(models.path()).arg(&old).status().unwrap();
    assert!(copied.success());
    let list = |variables: &[(&str, &Path)]| {
        let mut command = command(&["list"]);
        command.env_remove("BASERT_MODELS_DIR").env("HOME", home.path());
        for name in ["XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        run(command, "")
    };
    let named = list(&[("BASERT_MODELS_DIR", &old)]);
    assert_eq!(named.err, "", "a folder that was named is left alone");
    let data = home.path().join("data");
    let first = list(&[("XDG_DATA_HOME", &data)]);
    assert!(first.err.starts_with("note: models are now kept in ") && first.err.lines().count() == 1, "{}", first.err);
    assert!(data.join("basert/models/HuggingFaceTB").is_dir());
    let again = list(&[("XDG_DATA_HOME", &data)]);
    assert_eq!(again.err, "");
    assert_eq!(again.ok(), first.ok());
}

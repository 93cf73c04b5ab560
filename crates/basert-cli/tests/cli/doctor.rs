//! `basert doctor`.

use std::path::Path;

use serde_json::Value;

use crate::{Run, command, run, store};

/// With these folders of models and of what can be made again.
fn doctor(models: &Path, cache: &Path, arguments: &[&str]) -> Run {
    let mut command = command(&[&["doctor"], arguments].concat());
    command.env("BASERT_MODELS_DIR", models).env("BASERT_CACHE_DIR", cache);
    run(command, "")
}

fn finding<'a>(report: &'a Value, topic: &str) -> &'a Value {
    report["findings"].as_array().unwrap().iter().find(|finding| finding["topic"] == topic).unwrap()
}

#[test]
fn a_machine_is_told_as_it_is() {
    let (store, cache) = (store(), tempfile::tempdir().unwrap());
    let json = |models: &Path| -> Value {
        let out = doctor(models, &cache.path().join("not/there"), &["--device", "cpu", "--json"]).ok();
        serde_json::from_str(&out).unwrap()
    };
    let report = json(store.path());
    assert_eq!((&report["device"], &report["can_run"]), (&"cpu".into(), &true.into()));
    let cpu = finding(&report, "cpu");
    let instructions = cpu["facts"]["available_instructions"].as_array().unwrap();
    assert!(instructions.contains(&cpu["facts"]["instructions"]) && instructions.contains(&"portable".into()));
    assert!(cpu["facts"]["threads"].as_u64().unwrap() >= 1);
    let memory = &finding(&report, "memory")["facts"];
    assert!(memory["total_bytes"].as_u64() > memory["available_bytes"].as_u64(), "{memory}");
    assert_eq!(finding(&report, "models")["facts"]["exists"], true);
    let kernels = finding(&report, "cache");
    assert_eq!((&kernels["facts"]["exists"], &kernels["facts"]["writable"]), (&false.into(), &true.into()));
    assert!(!cache.path().join("not").exists(), "nothing is changed");
    assert_eq!(finding(&report, "default model")["state"], "good");

    let empty = tempfile::tempdir().unwrap();
    let missing = &json(empty.path());
    assert_eq!(finding(missing, "default model")["remedy"], "basert pull smollm2-135m");
    let text = doctor(empty.path(), cache.path(), &["--device", "cpu"]).ok();
    assert!(text.contains("→ basert pull smollm2-135m") && text.ends_with("models run on cpu\n"), "{text}");
}

#[test]
fn what_cannot_run_is_a_failure() {
    let cache = tempfile::tempdir().unwrap();
    // No machine has so many.
    let Run { code, out, err } = doctor(cache.path(), cache.path(), &["--device", "cuda:1000"]);
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(err, "error: this machine cannot run a model on cuda:1000\n");
    assert!(out.starts_with("basert ") && !out.contains("models run on"), "{out}");
}

/// A folder that cannot be written to, a compiler that does not run, and no home: told, and no reason to give up.
#[test]
fn an_odd_machine_is_no_reason_to_fail() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut odd = command(&["doctor", "--device", "cpu", "--json"]);
    odd.env("BASERT_MODELS_DIR", file.join("models")).env("BASERT_CACHE_DIR", &file);
    odd.env("CXX", "/no/such/compiler").env("PATH", "/nowhere").env_remove("HOME");
    let report: Value = serde_json::from_str(&run(odd, "").ok()).unwrap();
    for (topic, variable) in [("models", "BASERT_MODELS_DIR"), ("cache", "BASERT_CACHE_DIR")] {
        let finding = finding(&report, topic);
        assert_eq!((&finding["state"], &finding["facts"]["writable"]), (&"bad".into(), &false.into()));
        assert!(finding["remedy"].as_str().unwrap().contains(variable), "{finding}");
    }
    #[cfg(unix)]
    assert!(finding(&report, "simt")["what"].as_str().unwrap().contains("/no/such/compiler"));
}

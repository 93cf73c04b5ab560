//! `basert synth`.

use std::fs;

use serde_json::Value;

use crate::basert;

#[test]
fn a_model_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let path = path.to_str().unwrap();
    let synth = |more: &[&str]| {
        let arguments = ["synth", "--arch", "gemma3", "--size", "tiny", "--quant", "q4_k_m", path];
        basert(&[&arguments[..], more].concat())
    };
    let said = synth(&["--seed", "3"]).ok();
    assert!(said.starts_with("Gemma 3 tiny q4_k_m, random weights (") && said.contains(path), "{said}");
    let first = fs::read(path).unwrap();
    assert!(synth(&["--seed", "4"]).fails(2).contains("--force"));
    assert!(fs::read(path).unwrap() == first);
    synth(&["--seed", "4", "--force"]).ok();
    assert!(fs::read(path).unwrap() != first);
    synth(&["--seed", "3", "--force"]).ok();
    assert!(fs::read(path).unwrap() == first);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let formats = || {
        let report: Value = serde_json::from_str(&basert(&["inspect", path, "--json"]).ok()).unwrap();
        assert_eq!(report["runs_as"], "gemma3");
        report["formats"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(formats(), ["F32", "Q4_K", "Q6_K"]);
    synth(&["--pure", "--force"]).ok();
    assert_eq!(formats(), ["F32", "Q4_K"]);
    assert!(basert(&["complete", path, "-p", "Hello", "--max-tokens", "3"]).ok().len() > 1);
}

#[test]
fn what_there_is_not_is_answered_with_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let synth =
        |arch, size, quant, path: &str| basert(&["synth", "--arch", arch, "--size", size, "--quant", quant, path]);
    let at = path.to_str().unwrap();
    let unknown = synth("qwen9", "tiny", "q8_0", at).fails(2);
    assert!(["gemma3", "llama", "qwen3"].iter().all(|name| unknown.contains(name)), "{unknown}");
    assert!(synth("qwen3", "9b", "q8_0", at).fails(2).contains("0.6b, 1.7b, "));
    assert!(synth("qwen3", "tiny", "q9_0", at).fails(2).contains("q4_k_m"));
    assert!(!path.exists());
    assert!(synth("qwen3", "tiny", "q8_0", "/no/such/folder/m.gguf").fails(1).contains("/no/such/folder/m.gguf"));
}

#[test]
fn an_outline_is_planned_as_the_model_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (whole, outline) = (path("whole.gguf"), path("outline.gguf"));
    let synth = ["synth", "--arch", "qwen3", "--size", "tiny", "--quant", "q4_k_m"];
    basert(&[&synth[..], &[whole.as_str()]].concat()).ok();
    basert(&[&synth[..], &[outline.as_str(), "--outline"]].concat()).ok();
    let length = |path: &str| fs::metadata(path).unwrap().len();
    assert_eq!(length(&outline), length(&whole));
    let plan = |path: &str| basert(&["plan", path, "--json", "--chip", "m4-pro"]).ok();
    assert_eq!(plan(&outline), plan(&whole));
}

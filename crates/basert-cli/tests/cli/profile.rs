//! `basert profile`.

use serde_json::Value;

use crate::{Run, basert};

fn tiny() -> String {
    basert_testkit::tiny().join("qwen3.gguf").display().to_string()
}

fn json(run: Run) -> Value {
    serde_json::from_str(&run.ok()).unwrap()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn sum(parts: &[Value], name: &str) -> f64 {
    parts.iter().map(|part| number(part, name)).sum()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs()
}

/// Every op is in one part, with the plan's bytes and operations, and the parts add up.
#[track_caller]
fn is_whole(step: &Value, plan: &Value) {
    let parts = step["parts"].as_array().unwrap();
    let total = &plan["total"];
    for name in ["weight_bytes", "kv_bytes", "flops"] {
        assert!(close(sum(parts, name), number(total, name)), "{name} of {step}");
    }
    let mut next = 0;
    for part in parts.iter().filter(|part| part["op"] != "draw") {
        let [first, end] = [0, 1].map(|i| part["ops"][i].as_u64().unwrap());
        assert!(first >= next && end > first, "{part}");
        next = end;
        let kernels = part["kernels"].as_array().unwrap();
        assert!(!kernels.is_empty() && close(sum(kernels, "seconds"), number(part, "seconds")), "{part}");
    }
    assert!(close(sum(parts, "seconds"), number(step, "seconds_of_parts")));
    assert!(number(step, "seconds") > 0.0 && number(step, "seconds_profiled") > 0.0);
}

#[test]
fn every_op_is_timed_beside_its_cost() {
    for (tokens, depth) in ["1", "12"].into_iter().zip(["0", "70"]) {
        let model = tiny();
        let arguments = ["profile", &model, "--device", "cpu", "-p", tokens, "-d", depth, "-r", "3", "-w", "0"];
        let report = json(basert(&[&arguments[..], &["--json"]].concat()));
        let plan = json(basert(&["plan", &model, "-m", tokens, "--context", depth, "--json"]));
        is_whole(&report["step"], &plan);
        // Nothing is left out between ops.
        assert_eq!(report["step"]["parts"].as_array().unwrap().len(), plan["ops"].as_array().unwrap().len());
        assert!(report["step"]["parts"][1]["seconds_at_least"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn kinds_are_added_up_and_ops_are_listed_when_asked_for() {
    let model = tiny();
    let profile = |more: &[&str]| {
        basert(&[&["profile", &model, "--device", "cpu", "-r", "2", "-w", "0"][..], more].concat()).ok()
    };
    let (kinds, ops) = (profile(&[]), profile(&["--ops", "--chip", "m4-pro"]));
    let lines = |text: &str, name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!([lines(&kinds, "attention "), lines(&ops, "attention ")], [1, 2]);
    assert!(kinds.contains("the machine, measured now") && kinds.contains("of roofline"), "{kinds}");
    assert!(ops.contains("the limits of m4-pro") && ops.contains("blk.1.ffn_down.weight"), "{ops}");
    assert!(kinds.contains("of a profiled step"), "{kinds}");
    assert!(basert(&["profile", &model, "--chip", "m99"]).fails(2).contains("m4-pro"));
    assert!(basert(&["profile", &model, "--device", "reference"]).fails(1).contains("cannot time its ops"));
}

/// Kernels that draw the token are a part of a step of decoding, and a rotation that attention does belongs to it.
#[cfg(unix)]
#[test]
fn kernels_of_gpus_are_timed_one_by_one() {
    let (model, folder) = (tiny(), tempfile::tempdir().unwrap());
    let trace = folder.path().join("trace.json");
    let arguments = ["profile", &model, "--device", "simt", "-r", "1", "-w", "0", "--json"];
    let report = json(basert(&[&arguments[..], &["--trace", trace.to_str().unwrap()]].concat()));
    is_whole(&report["step"], &json(basert(&["plan", &model, "--json"])));
    let parts = report["step"]["parts"].as_array().unwrap();
    let kernels = |name: &str| -> Vec<&str> {
        let of_name =
            parts.iter().filter(|part| part["op"] == name).flat_map(|part| part["kernels"].as_array().unwrap());
        of_name.map(|kernel| kernel["kernel"].as_str().unwrap()).collect()
    };
    assert_eq!(kernels("draw"), ["largest", "sample"]);
    assert_eq!(kernels("rope+store, attention"), ["attention_decode", "attention_decode"]);

    let trace: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), parts.iter().map(|part| part["kernels"].as_array().unwrap().len()).sum::<usize>());
    let end = |event: &Value| number(event, "ts") + number(event, "dur");
    assert!(events.windows(2).all(|pair| end(&pair[0]) <= number(&pair[1], "ts") + 1e-3), "{events:?}");
    assert!(events.iter().all(|event| event["ph"] == "X" && event["args"]["kernel"].is_string()));
}

//! `basert bench`.

use std::path::Path;

use serde_json::Value;

use crate::{Run, basert, model};

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn json(run: Run) -> Value {
    serde_json::from_str(&run.ok()).unwrap()
}

#[test]
fn tests_are_measured_and_reported() {
    let model = model();
    let arguments = ["bench", &model, "-p", "8,16", "-n", "2", "-d", "0,4", "-b", "1,3", "-r", "2", "-w", "0"];
    let report = json(basert(&[&arguments[..], &["--json"]].concat()));
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<_> = tests
        .iter()
        .map(|t| (t["kind"].as_str().unwrap(), t["depth"].as_u64().unwrap(), t["sequences"].as_u64().unwrap()))
        .collect();
    let of_depth = |d| [("prefill", d, 1), ("prefill", d, 1), ("decode", d, 1), ("decode", d, 3)];
    assert_eq!(names, [of_depth(0), of_depth(4)].concat());
    for test in tests {
        let tokens = test["tokens"].as_f64().unwrap() * test["sequences"].as_f64().unwrap();
        let rates: Vec<_> = numbers(&test["seconds"]).iter().map(|s| tokens / s).collect();
        assert_eq!(rates.len(), 2);
        let mean = rates.iter().sum::<f64>() / 2.0;
        assert!((test["tokens_per_second"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9);
        let share = test["share_of_peak"].as_f64().unwrap();
        assert!(share > 0.0 && share < 2.0, "{share}");
        assert!(test["peer"].is_null());
    }
    let read = tests[2]["bytes_per_token"].as_f64().unwrap();
    assert!(read > 90e6 && read < 98_362_432.0, "{read}");
    // Three sequences read the weights once.
    let shared = tests[3]["bytes_per_token"].as_f64().unwrap();
    assert!((shared / read - 1.0 / 3.0).abs() < 0.01, "{shared} of {read}");
    // By the bandwidth for a working set of the model's size.
    let machine = &report["machine"]["reads"][0];
    assert!((machine["bytes"].as_f64().unwrap() / read - 1.0).abs() < 0.01, "{machine}");
    let share =
        tests[2]["gigabytes_per_second"].as_f64().unwrap() * 1e9 / machine["bytes_per_second"].as_f64().unwrap();
    assert!((tests[2]["share_of_peak"].as_f64().unwrap() / share - 1.0).abs() < 0.01, "{share}");

    let table = basert(&["bench", &model, "-p", "0", "-n", "1", "-r", "1", "-w", "0", "--markdown"]).ok();
    assert!(table.contains("| decode 1 | ") && table.contains("| of peak |"), "{table}");
    assert!(table.contains("\n\nthe machine, measured now with "), "{table}");
    let slow = ["bench", &model, "-p", "1", "-n", "0", "-r", "1", "-w", "0", "--device", "reference"];
    assert!(!basert(&slow).ok().contains("of peak"));
}

#[test]
fn the_machine_is_measured() {
    let report = json(basert(&["bench", "--machine", "--threads", "2", "--json"]));
    let machines = report["machine"].as_array().unwrap();
    assert_eq!(machines.iter().map(|m| m["threads"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for machine in machines {
        let reads = machine["reads"].as_array().unwrap();
        assert_eq!(reads.last().unwrap()["bytes"], 1_000_000_000);
        assert!(reads.len() >= 6 && reads.iter().all(|read| read["bytes_per_second"].as_f64().unwrap() > 1e8));
        let rate = |kind: &str| machine[format!("{kind}_operations_per_second")].as_f64().unwrap();
        assert!(rate("integer") > 1e8 && rate("float") > 1e8, "{machine}");
    }
    let table = basert(&["bench", "--machine", "--threads", "1", "--markdown"]).ok();
    assert!(table.contains("| 1 thread |\n| --- | ---: |\n| read 1.00 MB | "), "{table}");
}

fn peer(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/peers").join(name).display().to_string()
}

fn tiny() -> String {
    basert_testkit::tiny().join("llama.gguf").display().to_string()
}

fn compare(peer: &str, more: &[&str]) -> Run {
    let tiny = tiny();
    let arguments = ["bench", &tiny, "-p", "5", "-n", "3", "-r", "3", "-w", "1", "--threads", "2"];
    basert(&[&arguments[..], &["--compare", "llama-cpp-python", "--python", peer], more].concat())
}

#[test]
fn a_peer_is_measured_in_turn() {
    let report = json(compare(&peer("answers"), &["-d", "2", "-b", "2", "--json"]));
    assert_eq!(report["peer"], "fake 1.0");
    let tests = report["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 2);
    for (test, first, tokens) in [(&tests[0], 2.5, 5.0), (&tests[1], 6.5, 6.0)] {
        let (ours, theirs) = (numbers(&test["seconds"]), numbers(&test["peer"]["seconds"]));
        // The fake's first answer was for the warm-up.
        assert_eq!(theirs, [first, first + 1.0, first + 2.0]);
        let mean = theirs.iter().map(|seconds| tokens / seconds).sum::<f64>() / 3.0;
        assert!((test["peer"]["tokens_per_second"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9);
        let mut ratios: Vec<_> = ours.iter().zip(&theirs).map(|(ours, theirs)| theirs / ours).collect();
        ratios.sort_by(f64::total_cmp);
        let told = ["least", "median", "most"].map(|name| test["peer"]["ratio"][name].as_f64().unwrap());
        assert!(ratios.iter().zip(told).all(|(a, b)| (a / b - 1.0).abs() < 1e-9), "{ratios:?} {told:?}");
    }
    let table = compare(&peer("answers"), &[]).ok();
    let head = table.lines().find(|line| line.starts_with("test ")).unwrap();
    let columns: Vec<_> = head.split_whitespace().collect();
    assert_eq!(columns[..5], ["test", "tokens/s", "theirs", "ratio", "range"]);
    // Medians: 5 tokens in 3.5 seconds, 3 tokens in 7.5.
    let theirs = |test: &str| {
        let line = table.lines().find(|line| line.starts_with(test)).unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!([theirs("prefill 5"), theirs("decode 3")], ["1.4", "0.4"], "{table}");
    assert!(table.contains("in turn with fake 1.0"), "{table}");
}

#[test]
fn a_peer_that_does_not_work_is_told() {
    let message = compare(&peer("missing"), &[]).fails(1);
    assert!(message.contains("CMAKE_ARGS=\"-DGGML_NATIVE=ON\"") && message.contains("-m pip install"), "{message}");
    assert!(compare(&peer("refuses"), &[]).fails(1).contains("fake 1.0: it does not load this model"));
    assert!(compare(&peer("ends"), &[]).fails(1).contains("ended: exit status: 3"));
    assert!(compare(&peer("talks"), &[]).fails(1).contains("unexpected answer: 'Welcome!'"));
    assert!(compare("/no/such/python", &[]).fails(2).contains("--python names another"));
}

#[test]
fn contradictions_are_mistakes() {
    let tiny = tiny();
    let nothing: [&[&str]; 4] = [
        &["bench", &tiny, "--machine"],
        &["bench", "--machine", "--compare", "llama-cpp-python"],
        &["bench", &tiny, "--python", "python3"],
        &["bench", &tiny, "--compare", "ollama"],
    ];
    for arguments in nothing {
        let run = basert(arguments);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{arguments:?} {}", run.err);
        assert!(run.err.starts_with("error: "), "{}", run.err);
    }
}

//! The examples run. `cargo test` builds them beside the tests; with `--test it` alone, `cargo build --examples` does.

use std::path::Path;
use std::process::Command;

/// What an example prints for a model.
fn run(name: &str, model: &Path) -> String {
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    let output = Command::new(&example)
        .arg(model)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; cargo build -p basert --examples builds it", example.display()));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn chat() {
    let text = run("chat", &basert_testkit::smollm2());
    assert!(text.contains("> Name another one."), "{text}");
    assert!(text.contains("[0 of ") && text.matches("were cached]").count() == 2, "{text}");
    let cached = text.rsplit('[').next().unwrap().split(' ').next().unwrap();
    assert!(cached.parse::<usize>().unwrap() > 20, "{text}");
}

#[test]
fn batch() {
    let text = run("batch", &basert_testkit::smollm2());
    assert_eq!(text.matches("mean log probability -").count(), 6, "{text}");
    assert_eq!(text.matches(" tokens in ").count(), 3, "{text}");
}

#[test]
fn structured_output() {
    let text = run("structured_output", &basert_testkit::smollm2());
    assert!(text.contains("; a capital: "), "{text}");
}

#[test]
fn tools() {
    let text = run("tools", &basert_testkit::smollm2());
    assert!(text.starts_with("add({") && text.contains(") = "), "{text}");
}

#[test]
fn embeddings() {
    let text = run("embeddings", &basert_testkit::smollm2());
    let cosines: Vec<f32> = text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(cosines.len() == 3 && cosines[0] > cosines[1] && cosines[0] > cosines[2], "{text}");
}

#[test]
fn custom_architecture() {
    let text = run("custom_architecture", &basert_testkit::smollm2());
    let largest: Vec<f32> = text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    let [built_in, capped] = largest[..] else { panic!("{text}") };
    assert!((capped - 20.0 * (built_in / 20.0).tanh()).abs() < 0.01, "{text}");
}

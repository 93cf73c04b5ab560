//! What reading a model costs in resident memory. Alone in its process, so that nothing else moves the numbers.
#![cfg(target_os = "linux")]

use basert_core::Format;
use basert_files::{ModelFile, TensorSpec, Value, gguf};

/// Resident memory of this process in bytes: of files (`RssFile`) or its own (`RssAnon`).
fn resident(kind: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(kind)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

const MIB: usize = 1 << 20;

#[test]
fn metadata_is_not_copied_and_released_pages_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut writer = gguf::Writer::new();
    let tokens: Vec<String> = (0..262_144).map(|i| format!("token {i}")).collect();
    writer.set("tokenizer.ggml.tokens", &tokens).unwrap();
    writer.declare(TensorSpec::new("weight", Format::F32, &[4096, 4096])).unwrap();
    let mut out = writer.begin(std::fs::File::create(&path).unwrap()).unwrap();
    (0..64).for_each(|_| out.append(&vec![1; MIB]).unwrap());
    out.finish().unwrap();
    drop(tokens);

    let own = resident("RssAnon");
    let model = ModelFile::open(&path).unwrap();
    let tokens = model.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap();
    let last = tokens.all(Value::as_str).unwrap().last();
    assert_eq!((tokens.len(), last), (262_144, Some("token 262143")));
    assert!(resident("RssAnon") < own + MIB, "a list of tokens was copied");

    let weight = model.tensor("weight").unwrap();
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>();
    let before = resident("RssFile");
    assert_eq!(sum(weight.bytes), 64 * MIB);
    assert!(resident("RssFile") > before + 60 * MIB);
    model.release(weight.bytes);
    assert!(resident("RssFile") < before + 2 * MIB);
    assert_eq!(sum(&weight.bytes[..MIB]), MIB);
}

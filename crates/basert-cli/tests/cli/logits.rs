//! `basert logits` and `basert families`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use basert_testkit::tiny;
use serde_json::Value;

use super::basert;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The largest difference, relative to the largest that is expected.
fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    expected.iter().zip(found).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

/// A folder without a tokenizer is enough; files have all logits.
#[test]
fn logits_of_tokens_are_those_of_transformers() {
    let (folder, out) = (tiny().join("qwen3"), tempfile::tempdir().unwrap());
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let tokens: Vec<String> = expected["prompt"].as_array().unwrap().iter().map(Value::to_string).collect();
    let logits = floats(&fs::read(folder.join("logits.f32")).unwrap());
    let (tokens, folder) = (tokens.join(","), folder.display().to_string());
    let file = |name: &str| out.path().join(name).display().to_string();
    let compute = |device: &str, positions: &str, out: &str| {
        let path = file(out);
        let arguments = ["logits", &folder, "--tokens", &tokens, "--device", device, "--positions", positions];
        basert(&[&arguments[..], &["--out", &path]].concat()).ok();
        fs::read(path).unwrap()
    };

    let npy = compute("reference", "all", "all.npy");
    assert_eq!(npy[..8], *b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let text = std::str::from_utf8(&npy[10..10 + header]).unwrap();
    assert!(
        (10 + header).is_multiple_of(64) && text.contains("'shape': (48, 288)") && text.contains("'<f4'"),
        "{text}"
    );
    assert!(difference(&logits, &floats(&npy[10 + header..])) < 1e-4);

    let tensors = compute("cpu", "47,0", "some.safetensors");
    let header = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&tensors[8..8 + header]).unwrap();
    assert_eq!(json["logits"]["shape"], serde_json::json!([2, 288]));
    assert_eq!(json["__metadata__"]["positions"], "0,47");
    let ends = [&logits[..288], &logits[47 * 288..]].concat();
    assert!(difference(&ends, &floats(&tensors[8 + header..])) < 3e-3);

    let json: Value = serde_json::from_slice(&compute("reference", "last", "top.json")).unwrap();
    let row = &json["rows"][0];
    assert_eq!((row["position"].as_u64(), row["tokens"].as_array().unwrap().len()), (Some(47), 10));
    let best = (0..288).max_by(|&a, &b| logits[47 * 288 + a].total_cmp(&logits[47 * 288 + b])).unwrap();
    assert_eq!(row["tokens"][0].as_u64(), Some(best as u64));

    let wrong = basert(&["logits", &folder, "--tokens", "1,2", "--positions", "2"]).fails(2);
    assert!(wrong.contains("numbers below 2"), "{wrong}");
    let wrong = basert(&["logits", &folder, "--tokens", "1,288"]).fails(1);
    assert!(wrong.contains("288"), "{wrong}");
    let wrong = basert(&["logits", &folder, "--text", "a"]).fails(1);
    assert!(wrong.contains("tokenizer"), "{wrong}");
}

/// What the documentation says is what is built in.
#[test]
fn the_documented_families_are_those_that_are_known() {
    let listed: Value = serde_json::from_str(&basert(&["families", "--json"]).ok()).unwrap();
    let known: BTreeSet<String> = listed
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|family| ["gguf", "hf"].map(|kind| (kind, family[kind].as_array().unwrap())))
        .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind} {}", name.as_str().unwrap())))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = fs::read_to_string(root.join("docs/models.md")).unwrap();
    let (_, section) = document.split_once("## Families\n").unwrap();
    // A table of those that generate, and one of encoders.
    let lines = section.lines().take_while(|line| !line.starts_with("## "));
    let table = lines.filter(|line| line.starts_with("| ") && !line.starts_with("| family"));
    let mut documented = BTreeSet::new();
    for line in table {
        let cells: Vec<&str> = line.split('|').collect();
        for (kind, cell) in [("gguf", cells[2]), ("hf", cells[3])] {
            documented.extend(cell.split('`').skip(1).step_by(2).map(|name| format!("{kind} {name}")));
        }
    }
    assert_eq!(documented, known);
    assert!(basert(&["families"]).ok().ends_with(&format!("{} families\n", listed.as_array().unwrap().len())));
}

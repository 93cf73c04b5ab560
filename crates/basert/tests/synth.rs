//! Models of random weights, as `basert synth` makes them, run.

use std::fs::File;

use basert::files::ModelFile;
use basert::graph::Graph;
use basert::{DeviceKind, Loaded, Model, Options};
use basert_convert::{RECIPES, Synth, sizes};

/// Logits after each of a few tokens.
fn logits(path: &std::path::Path, device: DeviceKind, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut model = Loaded::open(path, Options { device, threads: Some(1), ..Options::default() }).unwrap();
    let mut rows = Vec::new();
    model.engine.score(tokens, 0, &mut |_, logits| rows.push(logits.to_vec())).unwrap();
    rows
}

fn rms(values: impl Iterator<Item = f32>) -> f32 {
    let squares: Vec<f32> = values.map(|x| x * x).collect();
    (squares.iter().sum::<f32>() / squares.len() as f32).sqrt()
}

/// One more token makes one more pass over the cache; the window of Gemma's tiny model is passed.
const TOKENS: [u32; 20] =
    [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 300, 301, 302, 303, 304, 305, 256, 10, 9];

/// Each family runs in a fourth of the quantisations, and the next in another fourth: all pairs would take minutes.
#[test]
fn every_family_and_every_quantisation_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (i, arch) in sizes::built_in().unwrap().keys().enumerate() {
        for recipe in RECIPES.iter().skip(i % 4).step_by(4) {
            let path = folder.path().join(format!("{arch}-{}.gguf", recipe.name));
            Synth::new(arch, "tiny", recipe.name, false, 7)
                .unwrap()
                .write(File::create(&path).unwrap(), &mut |_, _| {})
                .unwrap();
            let fast = logits(&path, DeviceKind::Cpu, &TOKENS);
            let exact = logits(&path, DeviceKind::Reference, &TOKENS);
            let name = format!("{arch} {}", recipe.name);
            assert!(fast.len() == TOKENS.len() && fast.iter().all(|row| row.len() == 384), "{name}");
            let mut errors = Vec::new();
            for (fast, exact) in fast.iter().zip(&exact) {
                let size = rms(exact.iter().copied());
                assert!((0.3..3.0).contains(&size), "{name}: logits are of size {size}");
                errors.push(rms(fast.iter().zip(exact).map(|(a, b)| a - b)) / size);
            }
            errors.sort_by(f32::total_cmp);
            // Rounding may turn a close choice of experts, which is another model for that token and those that see it.
            let file = ModelFile::open(&path).unwrap();
            let routed = file.tensors().any(|tensor| tensor.name.contains("_exps"));
            let most = if routed { TOKENS.len() / 4 } else { TOKENS.len() - 1 };
            // A state hands on the rounding of all tokens before.
            let bound = if Graph::open(&file, &[]).unwrap().slot_bytes() > 0 { 0.2 } else { 0.1 };
            assert!(errors[most] < bound, "{name}: {errors:?}");
        }
    }
}

#[test]
fn text_survives_the_vocabulary() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    Synth::new("qwen3", "tiny", "q8_0", false, 1).unwrap().write(file.as_file(), &mut |_, _| {}).unwrap();
    let model = Model::open(file.path(), Options::default()).unwrap();
    let text = "Then the näive and tothing\n 東京 \u{1f600}";
    let tokens = model.text_tokens(text).unwrap();
    assert!(tokens.len() < text.len(), "nothing was merged: {tokens:?}");
    assert_eq!(model.tokenizer().decode(&tokens, false), text);
}

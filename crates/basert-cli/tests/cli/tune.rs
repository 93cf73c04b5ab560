//! `basert tune`.

use crate::{basert, command, run};

#[test]
fn every_instruction_set_is_checked_and_timed() {
    let table = basert(&["tune", "--device", "cpu", "--short"]).ok();
    for isa in basert_cpu::Isa::available() {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(isa.name())).unwrap();
        assert!(line.contains(" right ") && line.contains("B/s") && line.contains("OP/s"), "{line}");
        assert_eq!(line.ends_with(" used"), isa == basert_cpu::Isa::detect(), "{line}");
    }
}

#[test]
fn what_has_no_table_is_not_tuned() {
    assert!(basert(&["tune", "--device", "cpu", "--submit"]).fails(2).contains("no tuning table"));
    assert!(basert(&["tune", "--device", "reference"]).fails(2).contains("oracle"));
    // No machine has so many.
    basert(&["tune", "--device", "cuda:1000"]).fails(1);
}

/// The table is kept, fit to be handed in, and what the next command chooses kernels from.
#[cfg(unix)]
#[test]
fn the_simulated_gpu_is_tuned_and_the_table_is_used() {
    let cache = tempfile::tempdir().unwrap();
    // Kernels that were compiled before need not be again.
    let compiled = basert_gpu::cache_dir().unwrap().join("kernels");
    std::fs::create_dir_all(&compiled).unwrap();
    std::os::unix::fs::symlink(compiled, cache.path().join("kernels")).unwrap();
    let cached = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("BASERT_CACHE_DIR", cache.path());
        run(command, "")
    };
    let tuned = cached(&["tune", "--device", "simt", "--short", "--submit"]);
    let path = tuned.err.trim().strip_prefix("saved to ").unwrap_or_else(|| panic!("{}", tuned.err)).to_owned();
    let file = tuned.ok();
    let (comments, table) = file.split_once("\n\n").unwrap();
    assert!(comments.lines().all(|line| line.starts_with("# ")) && comments.contains("say nothing"), "{comments}");
    assert!(comments.contains("gemm m=16 n=32"), "{comments}");
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(path.contains("/tuning/simt-") && kept.ends_with(table), "{path}: {kept}");

    let tiny = basert_testkit::tiny().join("qwen3.gguf").display().to_string();
    let profile = ["profile", &tiny, "--device", "simt", "-r", "1", "-w", "0"];
    cached(&profile).ok();
    std::fs::write(&path, "step_tokens = 'many'").unwrap();
    assert!(cached(&profile).fails(1).contains(&path));
    // A choice that no kernel allows.
    std::fs::write(&path, kept.replace("m = 16", "m = 15")).unwrap();
    assert!(cached(&profile).fails(1).contains("must be legal"));
}

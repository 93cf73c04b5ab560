//! Cached prefixes in files: what was computed by another process is as good as what is computed now, to the bit, and
//! what is not exactly that is refused.

use std::fs;
use std::path::Path;

use basert::{DeviceKind, Engine, KvFormat, Loaded, Options, PrefixFile, PrefixFileError, Sequence};

/// Of the tiny model, not knowing any file yet, with a file to know.
fn opened(device: DeviceKind, kv: KvFormat, sessions: usize, path: &Path) -> (Engine, PrefixFile) {
    opened_of("qwen3", 256, device, kv, sessions, path)
}

fn opened_of(
    model: &str,
    context: usize,
    device: DeviceKind,
    kv: KvFormat,
    sessions: usize,
    path: &Path,
) -> (Engine, PrefixFile) {
    let options = Options {
        device,
        kv,
        sessions,
        threads: Some(1),
        max_context: Some(context),
        prefix_cache: true,
        step_tokens: Some(64),
        ..Options::default()
    };
    let model = Loaded::open(basert_testkit::tiny().join(format!("{model}.gguf")), options).unwrap();
    let file = model.prefix_file(path).unwrap();
    (model.engine, file)
}

fn on_cpu(path: &Path) -> (Engine, PrefixFile) {
    opened(DeviceKind::Cpu, KvFormat::F16, 2, path)
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| (seed * 31 + i * i + 7 * i) % 250).collect()
}

/// Logits after the tokens, and how many of them were known.
fn logits(engine: &mut Engine, tokens: &[u32]) -> (Vec<u32>, usize) {
    let mut sequence = Sequence::default();
    engine.sync(&mut sequence, tokens);
    let known = sequence.computed();
    engine.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
    let bits = sequence.logits().iter().map(|logit| logit.to_bits()).collect();
    engine.close(&mut sequence);
    (bits, known)
}

/// Writes a file with two prompts that begin alike: 150 tokens, and 64 of them with 20 others.
fn write(path: &Path) -> [Vec<u32>; 2] {
    let (mut engine, file) = on_cpu(path);
    assert_eq!(engine.load_prefixes(file).unwrap(), 0);
    let long = prompt(1, 150);
    let other = [&long[..64], &prompt(2, 20)].concat();
    logits(&mut engine, &long);
    logits(&mut engine, &other);
    assert!(engine.has_unsaved_prefixes());
    assert_eq!(engine.save_prefixes().unwrap(), 4);
    assert!(!engine.has_unsaved_prefixes());
    [long, other]
}

#[test]
fn a_hit_from_a_file_has_the_bits_of_a_fresh_computation() {
    let folder = tempfile::tempdir().unwrap();
    let devices = [
        (DeviceKind::Cpu, KvFormat::F16),
        (DeviceKind::Cpu, KvFormat::Q8),
        (DeviceKind::Reference, KvFormat::F16),
        #[cfg(unix)]
        (DeviceKind::Simt, KvFormat::F16),
    ];
    for (device, kv) in devices {
        let path = folder.path().join(format!("{device}-{kv}"));
        let open = |path: &Path| opened(device, kv, 2, path);
        let (mut before, file) = open(&path);
        let page = before.page_tokens() as u32;
        assert_eq!(before.load_prefixes(file).unwrap(), 0);
        let known = prompt(3, page + 5);
        logits(&mut before, &known);
        assert_eq!(before.save_prefixes().unwrap(), 2);
        drop(before);

        let (mut after, file) = open(&path);
        assert_eq!(after.load_prefixes(file).unwrap(), 2);
        let (mut fresh, _) = open(&folder.path().join("none"));
        let longer = [&known[..], &[9, 8, 7]].concat();
        let parting = [&known[..page as usize + 2], &[200, 201]].concat();
        for (tokens, expected) in [(&known, known.len() - 1), (&longer, known.len()), (&parting, page as usize + 2)] {
            let (found, cached) = logits(&mut after, tokens);
            assert_eq!(cached, expected, "{device} {kv}");
            // Without a cache that could be right or wrong.
            let mut sequence = Sequence::default();
            fresh.set(&mut sequence, tokens.clone()).unwrap();
            fresh.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
            let bits: Vec<u32> = sequence.logits().iter().map(|logit| logit.to_bits()).collect();
            assert_eq!(found, bits, "{device} {kv}");
        }
    }
}

/// Of a model with windows, whose pages behind them were given back, and may be in the file or not.
#[test]
fn windows_are_those_of_a_fresh_computation() {
    let folder = tempfile::tempdir().unwrap();
    for (model, kv) in [("gemma3", KvFormat::F16), ("gpt-oss", KvFormat::Q8), ("mistral", KvFormat::F16)] {
        let path = folder.path().join(model);
        let open = |sessions, path: &Path| opened_of(model, 4096, DeviceKind::Cpu, kv, sessions, path);
        let (mut before, file) = open(1, &path);
        before.load_prefixes(file).unwrap();
        let long = prompt(3, 3000);
        logits(&mut before, &long);
        let (total, available) = (before.page_use().total, before.available_pages());
        assert!(total == available && before.page_use().cached < 2 * 3000usize.div_ceil(64), "some were evicted");
        before.save_prefixes().unwrap();
        drop(before);
        let (mut after, file) = open(1, &path);
        assert_eq!(after.load_prefixes(file).unwrap(), 3000usize.div_ceil(64));
        let (mut fresh, _) = open(1, &folder.path().join("none"));
        let next = [&long[..], &[5; 40]].concat();
        let parting = [&long[..2990], &[200, 201]].concat();
        let early = [&long[..700], &[200, 201]].concat();
        for (tokens, expected) in [(&next, Some(3000)), (&parting, Some(2990)), (&early, None)] {
            let (found, cached) = logits(&mut after, tokens);
            assert!(expected.is_none_or(|expected| cached == expected), "{model}: {cached}");
            let mut sequence = Sequence::default();
            fresh.set(&mut sequence, tokens.clone()).unwrap();
            fresh.advance(&mut [&mut sequence], usize::MAX, &mut |_| true).unwrap();
            let bits: Vec<u32> = sequence.logits().iter().map(|logit| logit.to_bits()).collect();
            assert_eq!(found, bits, "{model}, from {cached} of {}", tokens.len());
            fresh.rewind(&mut sequence, 0);
            fresh.close(&mut sequence);
        }
    }
}

#[test]
fn what_is_used_last_is_kept_where_there_is_no_room_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    let (mut engine, file) = opened(DeviceKind::Cpu, KvFormat::F16, 4, &path);
    engine.load_prefixes(file).unwrap();
    (0..5).for_each(|seed| drop(logits(&mut engine, &prompt(seed, 100))));
    assert_eq!(engine.save_prefixes().unwrap(), 10);
    // A file is one engine's at a time.
    drop(engine);
    // A session of 256 tokens, and no more.
    let (mut small, file) = opened(DeviceKind::Cpu, KvFormat::F16, 1, &path);
    assert_eq!(small.load_prefixes(file).unwrap(), 4);
    assert_eq!(small.available_pages(), 4);
    assert_eq!(logits(&mut small, &prompt(4, 100)).1, 99);
    // To go on from the page that has a part of it, a copy was needed, and room for that.
    assert_eq!(logits(&mut small, &prompt(3, 100)).1, 64);
    assert_eq!(logits(&mut small, &prompt(0, 100)).1, 0);
}

/// Whatever bit is wrong, wherever it ends: nothing of it is known, and a new file takes its place.
#[test]
fn a_damaged_file_is_refused_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    write(&path);
    let good = fs::read(&path).unwrap();
    let (mut engine, file) = on_cpu(&path);
    let mut refused = |bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        let error = engine.load_prefixes(file.clone()).unwrap_err();
        assert!(error.is_replaceable() && error.to_string().contains(expected), "{error}");
        let pages = engine.page_use();
        assert_eq!((pages.held, pages.cached, engine.available_pages()), (0, 0, pages.total));
    };
    for at in (8..400).chain((400..good.len()).step_by(977)).chain(good.len() - 20..good.len()) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, "are not used");
    }
    for length in (8..400).chain((400..good.len()).step_by(977)) {
        refused(&good[..length], "ends too early");
    }
    refused(&[&good[..], &[0]].concat(), "bytes after its end");
    // Sizes that nobody has memory for.
    refused(&[&good[..12], &[0xff; 4], &good[16..]].concat(), "its header would have 4294967295 bytes");
    let header = 16 + u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize + 8;
    refused(&[&good[..header + 12], &[0xff; 4], &good[header + 16..]].concat(), "4294967295 tokens in a page");

    logits(&mut engine, &prompt(5, 70));
    assert_eq!(engine.save_prefixes().unwrap(), 2);
    drop(engine);
    let (mut again, file) = on_cpu(&path);
    assert_eq!(again.load_prefixes(file).unwrap(), 2);
}

#[test]
fn pages_of_something_else_are_refused_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    write(&path);
    let refused = |(mut engine, file): (Engine, PrefixFile), expected: &str| {
        let error = engine.load_prefixes(file).unwrap_err();
        assert!(error.is_replaceable() && error.to_string().contains(expected), "{error}");
        assert_eq!(engine.page_use().cached, 0);
    };
    let (engine, file) = on_cpu(&path);
    refused((engine, PrefixFile { model: "other".to_owned(), ..file }), "model is");
    refused(opened(DeviceKind::Cpu, KvFormat::Q8, 2, &path), "format of keys and values is f16, and here it is q8");
    refused(opened(DeviceKind::Reference, KvFormat::F16, 2, &path), "page layout is cpu 2, and here it is tokens");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 1;
    fs::write(&path, bytes).unwrap();
    refused(on_cpu(&path), "version is 1, and here it is 4");
}

#[test]
fn a_file_that_is_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    for text in ["short", "These are notes, and dear to somebody."] {
        fs::write(&path, text).unwrap();
        let (mut engine, file) = on_cpu(&path);
        let error = engine.load_prefixes(file).unwrap_err();
        assert!(matches!(error, PrefixFileError::Other { .. }) && !error.is_replaceable(), "{error}");
        logits(&mut engine, &prompt(1, 70));
        assert!(!engine.has_unsaved_prefixes());
        assert_eq!(engine.save_prefixes().unwrap(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    for path in [folder.path().to_owned(), folder.path().join("nowhere/prefixes")] {
        let (mut engine, file) = on_cpu(&path);
        let error = engine.load_prefixes(file).unwrap_err();
        assert!(!error.is_replaceable() && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn an_empty_file_is_as_good_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    fs::write(&path, "").unwrap();
    write(&path);
    let (mut engine, file) = on_cpu(&path);
    assert_eq!(engine.load_prefixes(file).unwrap(), 4);
}

/// The first one goes on with it, also after it was replaced.
#[test]
fn two_do_not_use_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    let ((mut first, file), (mut second, _)) = (on_cpu(&path), on_cpu(&path));
    first.load_prefixes(file.clone()).unwrap();
    for seed in 0..2 {
        let error = second.load_prefixes(file.clone()).unwrap_err();
        assert!(matches!(error, PrefixFileError::InUse { .. }), "{error}");
        logits(&mut second, &prompt(7, 70));
        assert_eq!((second.has_unsaved_prefixes(), second.save_prefixes().unwrap()), (false, 0));
        logits(&mut first, &prompt(seed, 70));
        assert!(first.save_prefixes().unwrap() > 0);
    }
    drop(first);
    assert_eq!(second.load_prefixes(file).unwrap(), 4);
}

/// Whatever lies where a new file is begun: it is not written to, and is gone afterwards.
#[cfg(unix)]
#[test]
fn links_beside_the_file_are_not_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let (path, victim) = (folder.path().join("prefixes"), folder.path().join("victim"));
    fs::write(&victim, "dear to somebody").unwrap();
    for name in ["prefixes.partial", "prefixes.probe"] {
        symlink(&victim, folder.path().join(name)).unwrap();
    }
    write(&path);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "dear to somebody");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    write_more(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[cfg(unix)]
fn write_more(path: &Path) {
    let (mut engine, file) = on_cpu(path);
    engine.load_prefixes(file).unwrap();
    logits(&mut engine, &prompt(9, 70));
    engine.save_prefixes().unwrap();
}

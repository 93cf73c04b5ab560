//! GGUF files that are wrong: every one is an error that says what and where, and none is a panic.

use std::path::{Path, PathBuf};

use basert_core::Format;
use basert_files::{Mapping, ModelFile, Problem, TensorSpec, gguf};
use proptest::prelude::*;

/// A small file, written by hand so that each field can be changed: 2 keys, 2 tensors.
struct File {
    magic: [u8; 4],
    version: u32,
    tensor_count: u64,
    key_count: u64,
    /// Key, type and value.
    metadata: Vec<(Vec<u8>, u32, Vec<u8>)>,
    /// Name, dimensions innermost first, type, offset.
    tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    data: usize,
}

impl File {
    fn new() -> File {
        File {
            magic: *b"GGUF",
            version: 3,
            tensor_count: 2,
            key_count: 2,
            metadata: vec![
                (b"general.architecture".to_vec(), 8, string(b"llama")),
                (b"list".to_vec(), 9, [u32(4), u64(2), u32(7), u32(8)].concat()),
            ],
            tensors: vec![(b"norm".to_vec(), vec![5], 0, 0), (b"weight".to_vec(), vec![64, 3], 2, 32)],
            data: 32 + 3 * 36,
        }
    }

    /// The file after `change`.
    fn with(change: impl FnOnce(&mut File)) -> Vec<u8> {
        let mut file = File::new();
        change(&mut file);
        file.bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend([u32(self.version), u64(self.tensor_count), u64(self.key_count)].concat());
        for (key, ty, value) in &self.metadata {
            out.extend([string(key), u32(*ty), value.clone()].concat());
        }
        for (name, dimensions, ty, offset) in &self.tensors {
            out.extend([string(name), u32(dimensions.len() as u32)].concat());
            out.extend(dimensions.iter().flat_map(|&n| u64(n)));
            out.extend([u32(*ty), u64(*offset)].concat());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 7);
        out
    }
}

fn u32(x: u32) -> Vec<u8> {
    x.to_le_bytes().to_vec()
}

fn u64(x: u64) -> Vec<u8> {
    x.to_le_bytes().to_vec()
}

fn string(text: &[u8]) -> Vec<u8> {
    [u64(text.len() as u64), text.to_vec()].concat()
}

/// What the parser says of a file.
fn message(bytes: &[u8]) -> String {
    match gguf::parse(bytes) {
        Ok(_) => "no error".to_owned(),
        Err(problem) => problem.to_string(),
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut File), parts: &[&str]) {
    let message = message(&File::with(change));
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

#[test]
fn the_file_is_read_before_anything_is_changed() {
    let header = gguf::parse(&File::new().bytes()).unwrap();
    assert_eq!(header.tensors["weight"].shape, [3, 64]);
    let version_2 = gguf::parse(&File::with(|file| file.version = 2)).unwrap();
    assert_eq!(version_2.version, 2);
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let bytes = File::new().bytes();
    for len in 0..bytes.len() {
        assert!(matches!(gguf::parse(&bytes[..len]), Err(Problem::Truncated { .. })), "cut at {len}");
    }
}

#[test]
fn the_header_is_checked() {
    refused(|f| f.magic = *b"GGML", &["the magic", "GGML", "expected b\"GGUF\""]);
    refused(|f| f.magic = *b"tjgg", &["GGJT"]);
    assert!(message(b"version https://git-lfs.github.com/spec/v1").contains("Git LFS pointer"));
    refused(|f| f.version = 1, &["GGUF version 1 is not supported", "2 and 3"]);
    refused(|f| f.version = 4, &["GGUF version 4 is not supported"]);
    refused(|f| f.version = 3u32.swap_bytes(), &["big-endian GGUF (version 3) is not supported"]);
}

#[test]
fn counts_and_lengths_are_not_believed() {
    refused(|f| f.key_count = u64::MAX, &["the file ends inside", "metadata key", "of 18446744073709551615"]);
    refused(|f| f.tensor_count = u64::MAX, &["the name of tensor 2 of 18446744073709551615"]);
    let list = |ty: u32, len: u64| move |f: &mut File| f.metadata[1].2 = [u32(ty), u64(len), u32(0), u32(0)].concat();
    for ty in [0, 1, 4, 6, 8, 10, 12] {
        refused(list(ty, u64::MAX / 2), &["the file ends inside metadata 'list'"]);
        refused(list(ty, u64::MAX), &["the file ends inside metadata 'list'"]);
    }
    refused(|f| f.metadata[0].2 = u64(u64::MAX), &["metadata 'general.architecture'", "18446744073709551615 bytes"]);
}

#[test]
fn metadata_is_checked() {
    refused(|f| f.metadata[1].0 = b"\xff".to_vec(), &["metadata key 1 of 2", r"\xff", "expected UTF-8"]);
    refused(|f| f.metadata[1].0 = f.metadata[0].0.clone(), &["'general.architecture' appears more than once"]);
    refused(|f| f.metadata[1].1 = 13, &["metadata 'list' is of type 13", "0 to 12"]);
    refused(|f| f.metadata[1].2 = [u32(99), u64(0)].concat(), &["metadata 'list' is of type 99"]);
    refused(|f| f.metadata[1] = (b"b".to_vec(), 7, vec![2]), &["metadata 'b' is a bool of value 2"]);
    refused(|f| f.metadata[1].2 = [u32(7), u64(2), vec![1, 3]].concat(), &["'list' is a bool of value 3"]);
    let nest = |depth| {
        let inner = [u32(4), u64(0)].concat();
        move |f: &mut File| f.metadata[1].2 = (0..depth).fold(inner, |inner, _| [u32(9), u64(1), inner].concat())
    };
    assert!(gguf::parse(&File::with(nest(3))).is_ok());
    refused(nest(4), &["metadata 'list' is nested too deep"]);
    refused(nest(10_000), &["metadata 'list' is nested too deep"]);
    for wrong in [0, 4, 48, 33] {
        let align = |f: &mut File| f.metadata[1] = (b"general.alignment".to_vec(), 4, u32(wrong));
        refused(align, &["'general.alignment'", &wrong.to_string(), "a power of two"]);
    }
    refused(|f| f.metadata[1] = (b"general.alignment".to_vec(), 8, string(b"32")), &["'general.alignment' is \"32\""]);
    refused(|f| f.metadata[1] = (b"general.alignment".to_vec(), 4, u32(1 << 31)), &["offset of tensor 'weight'"]);
}

#[test]
fn text_that_is_not_utf_8_is_bytes() {
    let bytes = File::with(|f| f.metadata[0].2 = string(b"\xff!"));
    let header = gguf::parse(&bytes).unwrap();
    let value = header.get(&bytes, "general.architecture").unwrap();
    assert_eq!((value.as_str(), value.as_bytes()), (None, Some(b"\xff!".as_slice())));
}

#[test]
fn tensors_are_checked() {
    refused(|f| f.tensors[1].0 = b"\xc3".to_vec(), &["the name of tensor 1 of 2", "UTF-8"]);
    refused(|f| f.tensors[1].0 = f.tensors[0].0.clone(), &["tensor 'norm' appears more than once"]);
    refused(|f| f.tensors[1].1 = vec![], &["the number of dimensions of tensor 'weight' is 0; expected 1 to 4"]);
    refused(|f| f.tensors[1].1 = vec![32; 5], &["the number of dimensions of tensor 'weight' is 5"]);
    refused(|f| f.tensors[1].1 = vec![64, 0], &["the shape of tensor 'weight' is [0, 64]", "at least 1"]);
    refused(|f| f.tensors[1].1 = vec![48, 3], &["the shape of tensor 'weight' is [3, 48] of Q4_0", "blocks of 32"]);
    refused(|f| f.tensors[1].1 = vec![1 << 62, 1 << 62], &["the shape of tensor 'weight'", "fits in memory"]);
    refused(|f| f.tensors[1].1 = vec![1 << 63, 2], &["the shape of tensor 'weight'", "fits in memory"]);
    refused(|f| f.tensors[1].1 = vec![1 << 40, 3], &["the file ends inside the values of tensor 'weight'"]);
    refused(|f| f.tensors[1].3 = 33, &["the offset of tensor 'weight' is 33; expected a multiple of 32"]);
    refused(|f| f.tensors[1].3 = 64, &["the file ends inside the values of tensor 'weight'"]);
    refused(|f| f.tensors[1].3 = u64::MAX - 31, &["the offset of tensor 'weight'", "inside the file"]);
    refused(|f| f.tensors[1].3 = 1 << 62, &["the file ends inside the values of tensor 'weight'"]);
}

#[test]
fn a_type_that_is_not_read_is_named() {
    refused(|f| f.tensors[1].2 = 16, &["type 16 (IQ2_XXS) of tensor 'weight' is not supported", "readable are F32"]);
    refused(|f| f.tensors[1].2 = 4_000_000, &["type 4000000 of tensor 'weight' is not supported", "MXFP4"]);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let declare = |tensor| gguf::Writer::new().declare(tensor).unwrap_err().to_string();
    assert!(declare(TensorSpec::new("a", Format::Q4_0, &[2, 33])).contains("whole blocks"));
    assert!(declare(TensorSpec::new("a", Format::F32, &[0])).contains("at least 1"));
    assert!(declare(TensorSpec::new("a", Format::F32, &[1; 5])).contains("1 to 4"));
    let mut writer = gguf::Writer::new();
    writer.set("key", &1u32).unwrap();
    assert!(writer.set("key", &2u32).is_err());
    assert!(writer.set("general.alignment", &64u32).is_err());
    writer.declare(TensorSpec::new("a", Format::F32, &[2])).unwrap();
    assert!(writer.declare(TensorSpec::new("a", Format::F32, &[2])).is_err());
    let mut short = writer.begin(Vec::new()).unwrap();
    short.append(&[0; 7]).unwrap();
    assert!(short.append(&[0; 2]).is_err());
    assert!(gguf::Writer::new().begin(Vec::new()).unwrap().finish().is_ok());
}

#[test]
fn a_tensor_written_in_part_is_not_finished() {
    let mut writer = gguf::Writer::new();
    writer.declare(TensorSpec::new("a", Format::F32, &[2])).unwrap();
    let mut tensors = writer.begin(Vec::new()).unwrap();
    tensors.append(&[0; 7]).unwrap();
    assert!(tensors.finish().is_err());
}

/// Reads everything that a parsed header can lead to.
fn walk(bytes: &[u8]) {
    let Ok(header) = gguf::parse(bytes) else { return };
    for key in header.keys() {
        let value = header.get(bytes, key).unwrap();
        if let Some(array) = value.as_array() {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    for info in header.tensors.values() {
        assert!(bytes.get(info.range.clone()).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_mutation_makes_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = File::new().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        walk(&bytes);
    }

    /// Extreme numbers, where a field may lie.
    #[test]
    fn no_number_makes_it_panic(
        at in any::<prop::sample::Index>(),
        number in prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), Just(u64::MAX / 8), Just(u64::MAX - 63), any::<u64>()],
        width in prop_oneof![Just(4usize), Just(8)],
    ) {
        let mut bytes = File::new().bytes();
        let at = at.index(bytes.len() - width);
        bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        walk(&bytes);
    }

    #[test]
    fn no_noise_makes_it_panic(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        walk(&[b"GGUF\x03\0\0\0".as_slice(), &noise].concat());
    }
}

/// A real model, cut at every page: its header on every page, its data wherever a tensor begins or ends.
#[test]
fn every_cut_of_a_real_model_is_refused() {
    let Some(path) = real_model() else {
        eprintln!("skipped: no .gguf file in the test data; `tools/fetch-test-data` fetches one");
        return;
    };
    let map = Mapping::open(&path).unwrap();
    let header = gguf::parse(&map).unwrap();
    let starts = header.tensors.values().map(|info| info.range.start);
    let data = starts.clone().min().unwrap();
    let pages = (0..data.next_multiple_of(4096)).step_by(4096);
    let edges = starts.flat_map(|start| [start / 4096 * 4096, start.next_multiple_of(4096)]);
    for cut in pages.chain(edges).filter(|cut| *cut < map.len()) {
        assert!(matches!(gguf::parse(&map[..cut]), Err(Problem::Truncated { .. })), "cut at {cut}");
    }
}

fn real_model() -> Option<PathBuf> {
    let default = || Some(Path::new(&std::env::var_os("HOME")?).join(".cache/basert-test"));
    let folder = std::env::var_os("BASERT_TEST_DATA").map(PathBuf::from).or_else(default)?;
    let files = std::fs::read_dir(folder.join("models")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut models: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect();
    models.sort();
    models.into_iter().next()
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, File::with(|f| f.version = 9)).unwrap();
    let message = ModelFile::open(&path).unwrap_err().to_string();
    assert!(message.starts_with(path.to_str().unwrap()) && message.contains("version 9"), "{message}");
}

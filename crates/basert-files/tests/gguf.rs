//! GGUF files, whole and broken.

use basert_core::Format;
use basert_files::{FileError, Kind, ModelFile, TensorSpec, Value, gguf};

/// A file with a value of every type and tensors of several formats.
fn sample() -> Vec<u8> {
    let mut writer = gguf::Writer::new();
    writer.set("general.architecture", "llama").unwrap();
    writer.set("a.u8", &200u8).unwrap();
    writer.set("a.i8", &-3i8).unwrap();
    writer.set("a.u16", &60_000u16).unwrap();
    writer.set("a.i16", &-300i16).unwrap();
    writer.set("a.u32", &4_000_000_000u32).unwrap();
    writer.set("a.i32", &-70_000i32).unwrap();
    writer.set("a.u64", &u64::MAX).unwrap();
    writer.set("a.i64", &i64::MIN).unwrap();
    writer.set("a.f32", &1e-6f32).unwrap();
    writer.set("a.f64", &1e-300f64).unwrap();
    writer.set("a.bool", &true).unwrap();
    writer.set("a.strings", ["one", "", "żółć"].as_slice()).unwrap();
    writer.set("a.numbers", [4u32, 0, 4].as_slice()).unwrap();
    writer.set("a.bools", [true, false].as_slice()).unwrap();
    writer.set("a.nested", [vec!["x"], vec![], vec!["y", "z"]].as_slice()).unwrap();
    for tensor in tensors() {
        writer.declare(tensor).unwrap();
    }
    let mut out = writer.begin(Vec::new()).unwrap();
    let bytes: Vec<u8> = tensors().iter().flat_map(values).collect();
    for piece in bytes.chunks(7) {
        out.append(piece).unwrap();
    }
    out.finish().unwrap()
}

fn tensors() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("norm", Format::F32, &[5]),
        TensorSpec::new("weight", Format::Q4_0, &[3, 64]),
        TensorSpec::new("experts", Format::F16, &[2, 3, 4]),
        TensorSpec::new("k", Format::Q4_K, &[1, 256]),
    ]
}

/// Bytes that tell the tensors apart.
fn values(tensor: &TensorSpec) -> Vec<u8> {
    let seed = tensor.name.len() as u8;
    (0..tensor.byte_len().unwrap()).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect()
}

fn write(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_the_writer_writes_the_reader_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "sample.gguf", &sample());
    let model = ModelFile::open(&path).unwrap();
    assert_eq!((model.kind(), model.kind().key(), model.path()), (Kind::Gguf, "gguf", path.as_path()));
    assert_eq!(model.total_bytes(), sample().len() as u64);

    let get = |key| model.get(key).unwrap();
    assert_eq!(get("general.architecture"), Value::Str("llama"));
    assert_eq!(get("a.u8"), Value::Uint(200));
    assert_eq!(get("a.i8"), Value::Int(-3));
    assert_eq!(get("a.u16"), Value::Uint(60_000));
    assert_eq!(get("a.i16"), Value::Int(-300));
    assert_eq!(get("a.u32"), Value::Uint(4_000_000_000));
    assert_eq!(get("a.i32"), Value::Int(-70_000));
    assert_eq!(get("a.u64"), Value::Uint(u64::MAX));
    assert_eq!(get("a.i64"), Value::Int(i64::MIN));
    assert_eq!(get("a.f32").as_f64().map(|x| x as f32), Some(1e-6));
    assert_eq!(get("a.f64"), Value::Float(1e-300));
    assert_eq!(get("a.bool").as_bool(), Some(true));
    assert_eq!(model.get("a.missing"), None);

    let strings = get("a.strings").as_array().unwrap();
    assert_eq!((strings.len(), strings.element_type()), (3, "string"));
    assert_eq!(strings.all(Value::as_str).unwrap().collect::<Vec<_>>(), ["one", "", "żółć"]);
    assert!(strings.all(Value::as_u64).is_none());
    assert_eq!(get("a.numbers").as_array().unwrap().all(Value::as_u64).unwrap().collect::<Vec<_>>(), [4, 0, 4]);
    let bools = get("a.bools").as_array().unwrap().all(Value::as_bool).unwrap();
    assert_eq!(bools.collect::<Vec<_>>(), [true, false]);
    let nested: Vec<usize> =
        get("a.nested").as_array().unwrap().iter().map(|inner| inner.as_array().unwrap().len()).collect();
    assert_eq!(nested, [1, 0, 2]);
    assert_eq!(get("a.nested").to_string(), r#"[["x"], [], ["y", "z"]]"#);
    assert_eq!(model.metadata().len(), 16);
    assert_eq!(model.metadata()[2], ("a.i8".to_owned(), Value::Int(-3)));

    assert_eq!(model.tensors().len(), 4);
    for (tensor, spec) in model.tensors().zip(tensors()) {
        assert_eq!((tensor.name, tensor.format, tensor.shape), (&*spec.name, spec.format, &*spec.shape));
        assert_eq!(tensor.bytes, values(&spec));
        assert_eq!(tensor.offset % 32, 0);
        assert_eq!(model.tensor(&spec.name).unwrap().bytes, tensor.bytes);
    }
    assert!(model.tensor("missing").is_none());
}

#[test]
fn released_bytes_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = ModelFile::open(write(&folder, "sample.gguf", &sample())).unwrap();
    for tensor in model.tensors() {
        let before = tensor.bytes.to_vec();
        model.prefetch(tensor.bytes);
        model.release(tensor.bytes);
        assert_eq!(tensor.bytes, before);
    }
    model.release(&[1, 2, 3]);
}

#[test]
fn a_model_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<ModelFile>();
    shared::<FileError>();
}

//! Models that are damaged or unknown are refused with an error that names the file, what is wrong and what was
//! expected; nothing panics. (That broken files are refused byte by byte is tested where they are read.)

use std::path::{Path, PathBuf};

use basert::files::ModelFile;
use basert::{DeviceKind, KvFormat, Model, Options};
use basert_testkit::tiny;

/// A copy of a tiny model's bytes, to be damaged.
struct Copy {
    source: PathBuf,
    bytes: Vec<u8>,
}

impl Copy {
    fn of(name: &str) -> Copy {
        let source = tiny().join(name);
        Copy { bytes: std::fs::read(&source).unwrap(), source }
    }

    /// Puts `new` where the first `old` is, which is as long.
    fn replace(mut self, old: &str, new: &str) -> Copy {
        assert_eq!(old.len(), new.len());
        let at = self.find(old.as_bytes());
        self.bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        self
    }

    fn find(&self, text: &[u8]) -> usize {
        self.bytes.windows(text.len()).position(|window| window == text).unwrap()
    }

    /// Overwrites bytes of a tensor's data.
    fn damage(mut self, tensor: &str, offset: usize, new: &[u8]) -> Copy {
        let file = ModelFile::open(&self.source).unwrap();
        let at = file.tensor(tensor).unwrap().offset + offset;
        self.bytes[at..at + new.len()].copy_from_slice(new);
        self
    }

    fn error(&self) -> String {
        self.error_with(Options::default())
    }

    fn error_with(&self, options: Options) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.gguf");
        std::fs::write(&path, &self.bytes).unwrap();
        let options = Options { max_context: Some(64), sessions: 1, threads: Some(1), ..options };
        let error = Model::open(&path, options).err().expect("it is refused").to_string();
        assert!(error.contains("broken.gguf"), "names no file: {error}");
        error
    }
}

fn check(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
}

#[test]
fn the_undamaged_model_opens() {
    let options = Options { max_context: Some(64), ..Options::default() };
    Model::open(tiny().join("quantised/q4_0.gguf"), options).unwrap();
}

#[test]
fn an_unknown_architecture() {
    let copy = Copy::of("quantised/q4_0.gguf");
    let key = copy.find(b"general.architecture");
    let mut copy = copy;
    // After the key: the type, the length, and the text.
    let value = key + "general.architecture".len() + 4 + 8;
    assert_eq!(&copy.bytes[value..value + 5], b"llama");
    copy.bytes[value..value + 5].copy_from_slice(b"lxxma");
    check(&copy.error(), &["'lxxma' is not known", "gemma3", "llama", "qwen2", "qwen3", "--arch-file"]);
}

#[test]
fn a_missing_tensor() {
    let copy = Copy::of("quantised/q4_0.gguf").replace("blk.1.attn_q.weight", "blk.1.attn_x.weight");
    check(&copy.error(), &["'blk.1.attn_q.weight' is missing"]);
}

#[test]
fn a_tensor_that_nothing_uses() {
    let copy = Copy::of("qwen2.gguf").replace("blk.0.attn_q.bias", "blk.0.attn_q.bixs");
    check(&copy.error(), &["'blk.0.attn_q.bixs'", "does not mention"]);
}

#[test]
fn a_missing_hyperparameter() {
    let copy = Copy::of("quantised/q4_0.gguf").replace("llama.block_count", "llama.block_cxunt");
    check(&copy.error(), &["'llama.block_count' is missing", "layers"]);
}

#[test]
fn hyperparameters_that_do_not_fit_the_tensors() {
    let mut copy = Copy::of("quantised/q4_0.gguf");
    let at = copy.find(b"llama.attention.head_count") + "llama.attention.head_count".len() + 4;
    copy.bytes[at..at + 4].copy_from_slice(&7u32.to_le_bytes());
    check(&copy.error(), &["7 heads"]);
}

/// Qwen2 says which layers have windows, and Llama does not.
#[test]
fn windows_that_the_architecture_does_not_describe() {
    let source = tiny().join("llama");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replacen('{', "{\"use_sliding_window\": true,", 1);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let file = ModelFile::open(folder.path()).unwrap();
    check(&Model::plan_of(&file, &Options::default()).unwrap_err().to_string(), &["use_sliding_window is true"]);
}

#[test]
fn an_unknown_quantisation() {
    let mut copy = Copy::of("quantised/q4_0.gguf");
    // After the name: the number of dimensions, two of them, and the type.
    let name = b"blk.0.attn_q.weight";
    let at = copy.find(name) + name.len() + 4 + 2 * 8;
    copy.bytes[at..at + 4].copy_from_slice(&16u32.to_le_bytes());
    check(&copy.error(), &["blk.0.attn_q.weight", "16", "Q4_0"]);
}

#[test]
fn scales_that_are_not_numbers() {
    for (file, tensor, offset) in [
        ("quantised/q4_0.gguf", "blk.0.attn_q.weight", 0),
        ("quantised/q8_0.gguf", "blk.0.ffn_down.weight", 34),
        ("quantised/q4_k.gguf", "blk.0.ffn_up.weight", 2),
        ("quantised/q6_k.gguf", "token_embd.weight", 208),
    ] {
        let nan = 0x7e00u16.to_le_bytes();
        check(&Copy::of(file).damage(tensor, offset, &nan).error(), &[tensor, "not finite"]);
    }
    let nan = f32::NAN.to_le_bytes();
    check(
        &Copy::of("quantised/q4_0.gguf").damage("blk.0.attn_norm.weight", 8, &nan).error(),
        &["attn_norm", "value 2"],
    );
}

#[test]
fn a_tokenizer_without_a_vocabulary() {
    let copy = Copy::of("quantised/q4_0.gguf").replace("tokenizer.ggml.tokens", "tokenizer.ggml.tokenx");
    check(&copy.error(), &["tokenizer.ggml.tokens", "absent"]);
}

#[test]
fn a_template_that_does_not_parse() {
    let options = Options { chat_template: Some("{% if %}".to_owned()), ..Options::default() };
    check(&Copy::of("quantised/q4_0.gguf").error_with(options), &["template", "line 1"]);
}

#[test]
fn an_architecture_file_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../basert-graph/arch/llama.toml"));
    let mine = text.unwrap().replace("\"llama\", \"mistral\"", "\"lxxma\"");
    std::fs::write(&path, mine).unwrap();
    let mut copy = Copy::of("quantised/q4_0.gguf");
    let value = copy.find(b"general.architecture") + "general.architecture".len() + 12;
    copy.bytes[value..value + 5].copy_from_slice(b"lxxma");
    let options = Options { arch_files: vec![path.clone()], ..Options::default() };
    // It is found now; the keys of the file still begin with the name it had.
    check(&copy.error_with(options.clone()), &["'lxxma.block_count' is missing"]);
    std::fs::write(&path, "name = 'mine'\nblock = []").unwrap();
    let error = Model::open(tiny().join("llama.gguf"), options).err().unwrap().to_string();
    check(&error, &["mine.toml", "block"]);
}

#[test]
fn keys_and_values_in_formats_that_do_not_fit() {
    for (kv, name) in [(KvFormat::Q8, "q8"), (KvFormat::Q4, "q4")] {
        let options = Options { kv, device: DeviceKind::Reference, ..Options::default() };
        check(&Copy::of("qwen3.gguf").error_with(options), &["reference device", name]);
    }
}

//! What the tests of this crate share: the corpus, the fetched files, and vocabularies in the terms of GGUF.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use basert_files::{Array, ModelFile, Value};
use basert_text::{Constraint, GgufVocabulary, Tokenizer};

/// The file under the folder that tools/fetch-test-data fills.
pub fn fetched(path: &str) -> PathBuf {
    let root = std::env::var_os("BASERT_TEST_DATA").map(PathBuf::from);
    let home = std::env::var_os("HOME").expect("HOME is set");
    let path = root.unwrap_or_else(|| Path::new(&home).join(".cache/basert-test")).join(path);
    assert!(path.exists(), "{} is missing: run tools/fetch-test-data first", path.display());
    path
}

/// The text of a file of tests/data.
pub fn data(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The strings on which tokenizers are compared.
pub fn corpus() -> Vec<String> {
    serde_json::from_str(&data("corpus.json")).expect("a list of strings")
}

/// A tokenizer from a `tokenizer.json` of a published family.
pub fn from_json(family: &str) -> Tokenizer {
    Tokenizer::from_hf_dir(fetched(&format!("tokenizers/{family}"))).unwrap()
}

/// A tokenizer from the metadata of a GGUF file.
pub fn from_gguf_file(name: &str) -> Tokenizer {
    let model = ModelFile::open(fetched(&format!("models/{name}"))).unwrap();
    Tokenizer::from_gguf(gguf_vocabulary(&model)).unwrap()
}

/// What a GGUF file says about its tokenizer.
pub fn gguf_vocabulary(model: &ModelFile) -> GgufVocabulary<'_> {
    let get = |name: &str| model.get(&format!("tokenizer.ggml.{name}"));
    let array = |name: &str| get(name).and_then(Value::as_array);
    let id = |name: &str| get(name).and_then(Value::as_u64).map(|id| id as u32);
    let flag = |name: &str| get(name).and_then(Value::as_bool);
    let tokens = strings(array("tokens").expect("tokens"));
    GgufVocabulary {
        pre: get("pre").and_then(Value::as_str),
        token_types: array("token_type").map(|array| Box::new(types(array)) as _),
        scores: array("scores").map(|array| Box::new(scores(array)) as _),
        merges: array("merges").map(|array| Box::new(strings(array)) as _),
        bos: id("bos_token_id").or(id("cls_token_id")),
        separator: id("seperator_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        eom: id("eom_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        lowercase: model.get("tokenizer.ggml.normalizer.lowercase").and_then(Value::as_bool),
        strip_accents: model.get("tokenizer.ggml.normalizer.strip_accents").and_then(Value::as_bool),
        ..GgufVocabulary::new(get("model").and_then(Value::as_str).expect("model"), tokens)
    }
}

fn strings<'a>(array: Array<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    array.byte_strings().expect("strings")
}

fn scores<'a>(array: Array<'a>) -> impl Iterator<Item = f32> + use<'a> {
    array.all(Value::as_f64).expect("numbers").map(|score| score as f32)
}

fn types<'a>(array: Array<'a>) -> impl Iterator<Item = i32> + use<'a> {
    array.all(Value::as_i64).expect("integers").map(|number| number as i32)
}

/// A byte-level vocabulary of a `tokenizer.json`, in the terms of GGUF.
pub struct Converted {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

impl Converted {
    /// Reads the tokenizer of a published family.
    pub fn new(family: &str) -> Self {
        let file = std::fs::read(fetched(&format!("tokenizers/{family}/tokenizer.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let mut by_id: HashMap<u64, (&str, i32)> =
            vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), (token.as_str(), 1))).collect();
        for added in json["added_tokens"].as_array().unwrap() {
            let kind = if added["special"] == true { 3 } else { 4 };
            by_id.insert(added["id"].as_u64().unwrap(), (added["content"].as_str().unwrap(), kind));
        }
        let len = by_id.keys().max().unwrap() + 1;
        let unused = |id| format!("[unused {id}]");
        let (tokens, types) = (0..len)
            .map(|id| by_id.get(&id).map_or_else(|| (unused(id), 5), |&(token, kind)| (token.to_string(), kind)))
            .unzip();
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        let merges = merges.map(|merge| match merge {
            serde_json::Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        });
        Self { tokens, types, merges: merges.collect() }
    }

    /// The tokenizer of this vocabulary with a pre-tokenizer.
    pub fn tokenizer(&self, pre: &str) -> Tokenizer {
        Tokenizer::from_gguf(GgufVocabulary {
            pre: Some(pre),
            token_types: Some(Box::new(self.types.iter().copied())),
            merges: Some(Box::new(self.merges.iter().map(String::as_bytes))),
            ..GgufVocabulary::new("gpt2", self.tokens.iter().map(String::as_bytes))
        })
        .unwrap()
    }
}

/// A vocabulary of the 256 bytes, and these control tokens, the first of which ends an answer.
pub fn byte_tokenizer(control: &[&str]) -> Tokenizer {
    // GPT-2 writes bytes that print as they are, and the others from U+0100 on.
    let prints = |byte: &u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    let bytes = (0..=u8::MAX).map(|byte| match prints(&byte) {
        true => char::from(byte).to_string(),
        false => char::from_u32(others.next().unwrap()).unwrap().to_string(),
    });
    let tokens: Vec<String> = bytes.chain(control.iter().map(|&name| name.to_owned())).collect();
    let types = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 });
    Tokenizer::from_gguf(GgufVocabulary {
        pre: Some("gpt-2"),
        token_types: Some(Box::new(types)),
        merges: Some(Box::new(std::iter::empty())),
        eos: Some(256),
        ..GgufVocabulary::new("gpt2", tokens.iter().map(String::as_bytes))
    })
    .unwrap()
}

/// Whether a constraint admits a text, byte by byte, as a whole.
pub fn admits(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    let goes_on = |byte: u8| {
        let id = u32::from(byte);
        constraint.allows(id).unwrap() && constraint.accept(id).is_ok()
    };
    text.bytes().all(goes_on) && constraint.can_end()
}

/// A generator of numbers for tests (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % end as u64) as usize
    }
}

/// Draws tokens among those allowed until the answer ends or has `most` of them. Returns the ids, and whether it ended.
pub fn wander(tokenizer: &Tokenizer, constraint: &Constraint, random: &mut Random, most: usize) -> (Vec<u32>, bool) {
    let mut constraint = constraint.clone();
    let ends = tokenizer.end_of_generation();
    let mut ids = Vec::new();
    while ids.len() < most {
        let mask = constraint.mask().unwrap();
        let allowed: Vec<u32> =
            (0..32 * mask.len() as u32).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        let (last, allowed): (Vec<u32>, Vec<u32>) = allowed.into_iter().partition(|id| ends.contains(id));
        // Answers that may end do so half of the time, and closing quotes and brackets are likelier than elsewhere.
        let closing = |id: &&u32| matches!(tokenizer.token_bytes(**id), Some(b"\"" | b"}" | b"]"));
        let id = match (last.first(), allowed.iter().find(closing)) {
            (Some(&end), _) if allowed.is_empty() || random.below(2) == 0 => end,
            (_, Some(&id)) if random.below(3) == 0 => id,
            _ => allowed[random.below(allowed.len())],
        };
        constraint.accept(id).unwrap();
        ids.push(id);
        if ends.contains(&id) {
            return (ids, true);
        }
    }
    (ids, false)
}

/// A tool of this name, whose arguments may be a number `n`, a text `zone`, and others.
pub fn tool(name: &str) -> serde_json::Value {
    let properties = serde_json::json!({"n": {"type": "integer"}, "zone": {"type": "string"}, "on": {"type": "boolean"},
        "list": {"type": "array"}, "perhaps": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "any": {}});
    serde_json::json!({"type": "function", "function": {"name": name, "description": "…", "parameters": {"type": "object", "properties": properties}}})
}

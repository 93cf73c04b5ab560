//! A tokenizer from GGUF metadata. The inputs are built field by field, for bytes would hardly ever be a vocabulary.
#![no_main]

use basert_text::{EncodeOptions, GgufVocabulary, Tokenizer};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    model: Model,
    pre: Option<Pre<'a>>,
    tokens: Vec<Token<'a>>,
    /// Of how many tokens the type and the score are left out, to have lists of the wrong length now and then.
    without_type: Option<u8>,
    without_score: Option<u8>,
    merges: Option<Vec<Merge<'a>>>,
    precompiled_charsmap: Option<&'a [u8]>,
    /// bos, eos, eot, eom, unknown, padding; a number beyond the vocabulary is one of the errors.
    ids: [Option<u8>; 6],
    flags: [Option<bool>; 5],
    text: &'a str,
    add_special: bool,
    parse_special: bool,
}

#[derive(Arbitrary, Debug)]
enum Model {
    BytePair,
    Characters,
    SentencePiece,
    Unigram,
    WordPiece,
    Words,
    Longest,
    Plamo,
    Unknown,
}

#[derive(Arbitrary, Debug)]
enum Pre<'a> {
    Llama,
    Qwen,
    Smol,
    Gpt2,
    Other(&'a str),
}

#[derive(Arbitrary, Debug)]
struct Token<'a> {
    text: Text<'a>,
    kind: i8,
    score: f32,
}

#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Bytes(&'a [u8]),
    Str(&'a str),
    /// `<0x0A>` and its like.
    Byte(u8),
    Control(&'a str),
    /// With the mark for a space in front.
    Word(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Merge<'a> {
    Tokens(u8, u8),
    Bytes(&'a [u8]),
}

impl Text<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Text::Bytes(bytes) => bytes.to_vec(),
            Text::Str(text) => text.as_bytes().to_vec(),
            Text::Byte(byte) => format!("<0x{byte:02X}>").into_bytes(),
            Text::Control(name) => format!("<|{name}|>").into_bytes(),
            Text::Word(word) => format!("▁{word}").into_bytes(),
        }
    }
}

fuzz_target!(|input: Input| {
    let tokens: Vec<Vec<u8>> = input.tokens.iter().map(|token| token.text.bytes()).collect();
    let merges: Option<Vec<Vec<u8>>> = input.merges.as_ref().map(|merges| {
        let token = |id: u8| tokens.get(id as usize % tokens.len().max(1)).cloned().unwrap_or_default();
        merges
            .iter()
            .map(|merge| match merge {
                Merge::Tokens(left, right) => [token(*left), b" ".to_vec(), token(*right)].concat(),
                Merge::Bytes(bytes) => bytes.to_vec(),
            })
            .collect()
    });
    let model = match input.model {
        Model::BytePair => "gpt2",
        Model::Characters => "gemma4",
        Model::SentencePiece => "llama",
        Model::Unigram => "t5",
        Model::WordPiece => "bert",
        Model::Words => "whitespace",
        Model::Longest => "rwkv",
        Model::Plamo => "plamo2",
        Model::Unknown => "other",
    };
    let all_but = |without: Option<u8>| without.map(|n| tokens.len().saturating_sub(n as usize / 64));
    let [bos, eos, eot, eom, unknown, padding] = input.ids.map(|id| id.map(u32::from));
    let [add_bos, add_eos, add_space_prefix, remove_extra_whitespaces, treat_whitespace_as_suffix] = input.flags;
    let vocabulary = GgufVocabulary {
        pre: input.pre.as_ref().map(|pre| match pre {
            Pre::Llama => "llama-bpe",
            Pre::Qwen => "qwen2",
            Pre::Smol => "smollm",
            Pre::Gpt2 => "gpt-2",
            Pre::Other(name) => name,
        }),
        token_types: all_but(input.without_type).map(|n| {
            Box::new(input.tokens.iter().take(n).map(|token| token.kind.into())) as Box<dyn Iterator<Item = _>>
        }),
        scores: all_but(input.without_score)
            .map(|n| Box::new(input.tokens.iter().take(n).map(|token| token.score)) as Box<dyn Iterator<Item = _>>),
        merges: merges.as_ref().map(|merges| Box::new(merges.iter().map(Vec::as_slice)) as Box<dyn Iterator<Item = _>>),
        precompiled_charsmap: input.precompiled_charsmap,
        bos,
        eos,
        eot,
        eom,
        unknown,
        padding,
        add_bos,
        add_eos,
        add_space_prefix,
        remove_extra_whitespaces,
        treat_whitespace_as_suffix,
        ..GgufVocabulary::new(model, tokens.iter().map(Vec::as_slice))
    };
    let tokenizer = match Tokenizer::from_gguf(vocabulary) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    let options = EncodeOptions { add_special: input.add_special, parse_special: input.parse_special };
    let ids = match tokenizer.encode(input.text, options) {
        Ok(ids) => ids,
        Err(error) => {
            let _ = error.to_string();
            Vec::new()
        }
    };
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    let _ = tokenizer.decode(&ids, false);
    let every: Vec<u32> = (0..=tokenizer.vocab_size() as u32).collect();
    let _ = tokenizer.decode(&every, true);
    let _ = tokenizer.template_variables();
    assert!(tokenizer.end_of_generation().iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
});

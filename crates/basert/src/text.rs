//! The tokenizer and the chat template that come with a model file.

use basert_files::{Array, Kind, ModelFile, Value};
use basert_text::{ChatTemplate, GgufVocabulary, HuggingFaceFiles, Tokenizer, TokenizerError};

use crate::Error;

/// The files of a Hugging Face folder that its tokenizer is made of.
pub(crate) const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Builds the model's tokenizer.
pub(crate) fn tokenizer(file: &ModelFile) -> Result<Tokenizer, Error> {
    let name = || file.path().display().to_string();
    let built = match file.kind() {
        Kind::Gguf => gguf_tokenizer(file),
        Kind::HuggingFace => {
            let missing = || {
                let what = "there is no tokenizer.json; a folder has to have one".to_owned();
                Error::Model { file: name(), what }
            };
            let [tokenizer, config, generation_config] = TOKENIZER_FILES.map(|name| file.companion(name));
            let (tokenizer, config, generation_config) = (tokenizer?.ok_or_else(missing)?, config?, generation_config?);
            Tokenizer::from_hf_files(HuggingFaceFiles {
                tokenizer: &tokenizer,
                config: config.as_deref(),
                generation_config: generation_config.as_deref(),
            })
        }
    };
    built.map_err(|source| Error::Tokenizer { file: name(), source })
}

fn gguf_tokenizer(file: &ModelFile) -> Result<Tokenizer, TokenizerError> {
    let get = |name: &str| file.get(&format!("tokenizer.ggml.{name}"));
    let field = |name: &str, found: &str, expected: &str| TokenizerError::Field {
        field: format!("tokenizer.ggml.{name}"),
        found: found.to_owned(),
        expected: expected.to_owned(),
    };
    let list = |name: &str| match get(name) {
        None => Ok(None),
        Some(value) => value.as_array().map(Some).ok_or_else(|| field(name, "a single value", "a list")),
    };
    fn typed<'a, T: 'a>(
        array: Option<Array<'a>>,
        read: fn(Value<'a>) -> Option<T>,
        wrong: impl Fn() -> TokenizerError,
    ) -> Result<Option<Box<dyn Iterator<Item = T> + 'a>>, TokenizerError> {
        let Some(array) = array else { return Ok(None) };
        match array.all(read) {
            Some(items) => Ok(Some(Box::new(items))),
            None => Err(wrong()),
        }
    }
    let id = |name: &str| match get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(id)) => Ok(Some(id)),
            _ => Err(field(name, "something else", "the id of a token")),
        },
    };
    let text = |name: &str| get(name).and_then(Value::as_str);
    let flag = |name: &str| get(name).and_then(Value::as_bool);
    let charsmap: Option<Vec<u8>> = match get("precompiled_charsmap").and_then(Value::as_array) {
        Some(array) => array.iter().map(|byte| byte.as_i64().map(|byte| byte as u8)).collect(),
        None => None,
    };
    let model = text("model").ok_or_else(|| field("model", "absent", "gpt2, llama or t5"))?;
    let strings = |name: &str| match list(name)? {
        None => Ok(None),
        Some(array) => match array.byte_strings() {
            Some(strings) => Ok(Some(Box::new(strings) as Box<dyn Iterator<Item = &[u8]>>)),
            None => Err(field(name, "other values", "strings")),
        },
    };
    let tokens = strings("tokens")?.ok_or_else(|| field("tokens", "absent", "the vocabulary"))?;
    Tokenizer::from_gguf(GgufVocabulary {
        pre: text("pre"),
        token_types: typed(
            list("token_type")?,
            |value| value.as_i64().and_then(|kind| i32::try_from(kind).ok()),
            || field("token_type", "other values", "integers"),
        )?,
        scores: typed(
            list("scores")?,
            |value| value.as_f64().map(|score| score as f32),
            || field("scores", "other values", "numbers"),
        )?,
        merges: strings("merges")?,
        precompiled_charsmap: charsmap.as_deref(),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        treat_whitespace_as_suffix: flag("treat_whitespace_as_suffix"),
        ..GgufVocabulary::new(model, tokens)
    })
}

/// The source of the model's chat template, if it has one.
pub(crate) fn template_source(file: &ModelFile) -> Result<Option<String>, Error> {
    if file.kind() == Kind::Gguf {
        return Ok(file.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned));
    }
    if let Some(template) = file.companion("chat_template.jinja")? {
        return Ok(Some(String::from_utf8_lossy(&template).into_owned()));
    }
    let wrong = |what: String| Error::Model { file: file.path().display().to_string(), what };
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let Some(json) = file.companion(name)? else { continue };
        let json: serde_json::Value =
            serde_json::from_slice(&json).map_err(|error| wrong(format!("{name}: {error}")))?;
        match &json["chat_template"] {
            serde_json::Value::String(source) => return Ok(Some(source.clone())),
            // Several templates, each with a name; the one for chats is called "default".
            serde_json::Value::Array(several) => {
                let default = several.iter().find(|entry| entry["name"] == "default");
                if let Some(source) = default.and_then(|entry| entry["template"].as_str()) {
                    return Ok(Some(source.to_owned()));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Parses a template and gives it the tokenizer's variables.
pub(crate) fn template(source: &str, tokenizer: &Tokenizer, file: &str) -> Result<ChatTemplate, Error> {
    let template = ChatTemplate::new(source).map_err(|source| Error::Template { file: file.to_owned(), source })?;
    Ok(template.with_variables(tokenizer.template_variables()))
}

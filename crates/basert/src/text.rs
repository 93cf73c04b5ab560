//! The tokenizer and the chat template that come with a model file.

use basert_files::{Array, Kind, ModelFile, Value, hf};
use basert_text::{ChatTemplate, FillInTokens, GgufVocabulary, HuggingFaceFiles, Tokenizer, TokenizerError};
use serde_json::{Value as Json, json};

use crate::Error;

/// The files of a Hugging Face folder from which its tokenizer is built.
pub(crate) const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"];

/// The byte order mark with which some editors begin a file.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Builds a model's tokenizer.
///
/// # Errors
/// When its files have none, or one that is not known.
pub fn tokenizer(file: &ModelFile) -> Result<Tokenizer, Error> {
    let name = || file.path().display().to_string();
    let built = match file.kind() {
        Kind::Gguf => gguf_tokenizer(file),
        Kind::HuggingFace => {
            let missing = || {
                let what = "there is no tokenizer.json, which a model's folder has to have".to_owned();
                Error::Model { file: name(), what }
            };
            let tokenizer = file.companion(TOKENIZER_FILES[0])?.ok_or_else(missing)?;
            let read = |name: &str| json(file, name).map(|json| json.unwrap_or_else(|| json!({})));
            let (mut config, generation) = (read(TOKENIZER_FILES[1])?, read(TOKENIZER_FILES[2])?);
            // The file in which older versions of transformers name the special tokens.
            let mut named = read(TOKENIZER_FILES[3])?;
            if let (Some(config), Some(named)) = (config.as_object_mut(), named.as_object_mut()) {
                let missing =
                    std::mem::take(named).into_iter().filter(|(key, _)| config.get(key).is_none_or(Json::is_null));
                let missing: Vec<_> = missing.collect();
                config.extend(missing);
            }
            let (config, generation) = (config.to_string(), generation.to_string());
            Tokenizer::from_hf_files(HuggingFaceFiles {
                tokenizer: tokenizer.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(&tokenizer),
                config: Some(config.as_bytes()),
                generation_config: Some(generation.as_bytes()),
            })
        }
    };
    built.map_err(|source| Error::Tokenizer { file: name(), source })
}

/// The contents of a JSON file of the folder, if it has one of this name.
fn json(file: &ModelFile, name: &str) -> Result<Option<Json>, Error> {
    let Some(text) = file.companion(name)? else { return Ok(None) };
    hf::read_json(&text).map(Some).map_err(|error| {
        let what = format!("{name}: {error}; expected JSON as transformers writes it");
        Error::Model { file: file.path().display().to_string(), what }
    })
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
        // Some write -1 if there is none.
        Some(value) => match value.as_i64() {
            Some(id) if id < 0 => Ok(None),
            Some(id) => Ok(Some(u32::try_from(id).unwrap_or(u32::MAX))),
            None => Err(field(name, "something else", "the id of a token")),
        },
    };
    let text = |name: &str| get(name).and_then(Value::as_str);
    let flag = |name: &str| get(name).and_then(Value::as_bool);
    let charsmap: Option<Vec<u8>> = match get("precompiled_charsmap").and_then(Value::as_array) {
        Some(array) => array.iter().map(|byte| byte.as_i64().map(|byte| byte as u8)).collect(),
        None => None,
    };
    let ends = list("eos_token_ids")?.map(|ids| ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect());
    let model = text("model").ok_or_else(|| field("model", "absent", "the kind of tokenizer, such as gpt2"))?;
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
        bos: id("bos_token_id")?.or(id("cls_token_id")?),
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        ends: ends.unwrap_or_default(),
        separator: id("seperator_token_id")?.or(id("separator_token_id")?),
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
        fill_in: FillInTokens {
            prefix: id("fim_pre_token_id")?.or(id("prefix_token_id")?),
            suffix: id("fim_suf_token_id")?.or(id("suffix_token_id")?),
            middle: id("fim_mid_token_id")?.or(id("middle_token_id")?),
            repository: id("fim_rep_token_id")?,
            file: id("fim_sep_token_id")?,
            padding: id("fim_pad_token_id")?,
        },
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        treat_whitespace_as_suffix: flag("treat_whitespace_as_suffix"),
        lowercase: flag("normalizer.lowercase"),
        strip_accents: flag("normalizer.strip_accents"),
        ..GgufVocabulary::new(model, tokens)
    })
}

/// The source of the model's chat template, if it has one.
pub(crate) fn template_source(file: &ModelFile) -> Result<Option<String>, Error> {
    let source = match file.kind() {
        Kind::Gguf => gguf_template(file),
        Kind::HuggingFace => folder_template(file)?,
    };
    Ok(source.map(|source| source.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(source)))
}

/// The template under the usual key; else the one called "default" or, without one, the first.
fn gguf_template(file: &ModelFile) -> Option<String> {
    const KEY: &str = "tokenizer.chat_template";
    let text = |key: &str| file.get(key).and_then(Value::as_str);
    if let Some(source) = text(KEY) {
        return Some(source.to_owned());
    }
    let metadata = file.metadata();
    let named =
        metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(KEY)?.strip_prefix('.')?, value.as_str()?)));
    chosen(named)
}

fn folder_template(file: &ModelFile) -> Result<Option<String>, Error> {
    for name in ["chat_template.jinja", "additional_chat_templates/default.jinja"] {
        if let Some(template) = file.companion(name)? {
            return Ok(Some(String::from_utf8_lossy(&template).into_owned()));
        }
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let Some(json) = json(file, name)? else { continue };
        let source = match &json["chat_template"] {
            Json::String(source) => Some(source.clone()),
            Json::Array(several) => {
                chosen(several.iter().filter_map(|entry| Some((entry["name"].as_str()?, entry["template"].as_str()?))))
            }
            Json::Object(several) => {
                chosen(several.iter().filter_map(|(name, source)| Some((name.as_str(), source.as_str()?))))
            }
            _ => None,
        };
        if source.is_some() {
            return Ok(source);
        }
    }
    Ok(None)
}

/// Chooses the template for chats among several named ones.
fn chosen<'a>(templates: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let templates: Vec<_> = templates.collect();
    let default = templates.iter().find(|(name, _)| *name == "default");
    if let (None, Some((name, _))) = (default, templates.first()) {
        tracing::warn!("no chat template is called 'default'; '{name}' is used");
    }
    default.or(templates.first()).map(|(_, source)| (*source).to_owned())
}

/// Parses a template and gives it the tokenizer's variables.
pub(crate) fn template(source: &str, tokenizer: &Tokenizer, file: &str) -> Result<ChatTemplate, Error> {
    let template = ChatTemplate::new(source).map_err(|source| Error::Template { file: file.to_owned(), source })?;
    Ok(template.with_variables(tokenizer.template_variables()))
}

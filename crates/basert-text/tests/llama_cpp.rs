//! The vocabularies and chat templates that llama.cpp is tested with. `tools/llama-cpp-models` fetches them, writes what
//! Jinja2 makes of the templates, and runs this.

use std::path::PathBuf;

use basert_files::ModelFile;
use basert_text::{ChatRequest, ChatTemplate, Dialect, EncodeOptions, Tokenizer};
use serde_json::{Map, Value};
use unicode_normalization::UnicodeNormalization;

use crate::common::{byte_tokenizer, gguf_vocabulary};

/// Templates, the dialect of their models, and what ends an answer; nothing where only the model's file says it.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("Apertus-8B-Instruct", "apertus", "<|assistant_end|>"),
    ("Apriel-1.6-15b-Thinker-fixed", "tool-calls", "<|end|>"),
    ("Bielik-11B-v3.0-Instruct", "hermes", "<|im_end|>"),
    ("ByteDance-Seed-OSS", "seed", "<seed:eos>"),
    ("Cohere2MoE", "cohere", "<|END_OF_TURN_TOKEN|>"),
    ("CohereForAI-c4ai-command-r-plus-tool_use", "cohere", "<|END_OF_TURN_TOKEN|>"),
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "cohere", "<|END_OF_TURN_TOKEN|>"),
    ("GLM-4.6", "glm", ""),
    ("GLM-4.7-Flash", "glm", ""),
    ("GigaChat3-10B-A1.8B", "generic", "<|message_sep|>"),
    ("GigaChat3.1-10B-A1.8B", "gigachat", "<|message_sep|>"),
    ("HuggingFaceTB-SmolLM3-3B", "generic", "<|im_end|>"),
    ("Kimi-K2-Instruct", "kimi", "<|im_end|>"),
    ("Kimi-K2-Thinking", "kimi", "<|im_end|>"),
    ("Kimi-K3", "generic", ""),
    ("LFM2-8B-A1B", "lfm2", "<|im_end|>"),
    ("LFM2.5-8B-A1B", "lfm2", "<|im_end|>"),
    ("LFM2.5-Instruct", "lfm2", "<|im_end|>"),
    ("MiMo-VL", "hermes", "<|im_end|>"),
    ("MiniMax-M1", "tool-calls", ""),
    ("MiniMax-M2", "minimax", "[e~["),
    ("MiniMax-M3", "generic", "[e~["),
    ("Mistral-Small-3.2-24B-Instruct-2506", "mistral-args", "</s>"),
    ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "qwen-coder", "<|im_end|>"),
    ("NVIDIA-Nemotron-Nano-v2", "nemotron", ""),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes", "<|im_end|>"),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes", "<|im_end|>"),
    ("Qwen-QwQ-32B", "hermes", "<|im_end|>"),
    ("Qwen-Qwen2.5-7B-Instruct", "hermes", "<|im_end|>"),
    ("Qwen-Qwen3-0.6B", "hermes", "<|im_end|>"),
    ("Qwen3-Coder", "qwen-coder", "<|im_end|>"),
    ("Qwen3.5-4B", "qwen-coder", "<|im_end|>"),
    ("Reka-Edge", "hermes", ""),
    ("Spark2.5", "glm", "<｜end▁of▁sentence｜>"),
    ("StepFun3.5-Flash", "qwen-coder", "<|im_end|>"),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek", "<｜end▁of▁sentence｜>"),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek", "<｜end▁of▁sentence｜>"),
    ("deepseek-ai-DeepSeek-V3.1", "deepseek-plain", "<｜end▁of▁sentence｜>"),
    ("deepseek-ai-DeepSeek-V3.2", "deepseek-dsml", "<｜end▁of▁sentence｜>"),
    ("deepseek-ai-DeepSeek-V4-Flash-0731", "deepseek-dsml", "<｜end▁of▁sentence｜>"),
    ("deepseek-ai-DeepSeek-V4", "deepseek-dsml", "<｜end▁of▁sentence｜>"),
    ("fireworks-ai-llama-3-firefunction-v2", "llama3", "<|eot_id|>"),
    ("google-gemma-2-2b-it", "gemma", "<end_of_turn>"),
    ("google-gemma-4-31B-it-interleaved", "gemma4", "<turn|>"),
    ("google-gemma-4-31B-it", "gemma4", "<turn|>"),
    ("ibm-granite-granite-3.3-2B-Instruct", "tool-list", "<|end_of_text|>"),
    ("ibm-granite-granite-4.0", "hermes", "<|end_of_text|>"),
    ("ibm-granite-granite-4.1", "hermes", "<|end_of_text|>"),
    ("inclusionai-ling-3.0-flash", "glm", "<|role_end|>"),
    ("llama-cpp-deepseek-r1", "deepseek", "<｜end▁of▁sentence｜>"),
    ("llama-cpp-rwkv-world", "generic", ""),
    ("meetkai-functionary-medium-v3.1", "llama3", "<|eot_id|>"),
    ("meetkai-functionary-medium-v3.2", "llama3", "<|eot_id|>"),
    ("meta-llama-Llama-3.1-8B-Instruct", "llama3", "<|eot_id|>"),
    ("meta-llama-Llama-3.2-3B-Instruct", "llama3", "<|eot_id|>"),
    ("meta-llama-Llama-3.3-70B-Instruct", "llama3", "<|eot_id|>"),
    ("microsoft-Phi-3.5-mini-instruct", "generic", "<|end|>"),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "mistral-args", "</s>"),
    ("mistralai-Mistral-Nemo-Instruct-2407", "mistral", "</s>"),
    ("moonshotai-Kimi-K2", "kimi", "<|im_end|>"),
    ("muse-glimmer", "generic", ""),
    ("openai-gpt-oss-120b", "harmony", "<|return|>"),
    ("openbmb-MiniCPM5-1B", "minicpm5", "<|im_end|>"),
    ("poolside-Laguna-S-2.1", "glm", ""),
    ("poolside-Laguna-XS-2.1", "glm", ""),
    ("poolside-Laguna-XS.2", "glm", ""),
    ("tencent-Hy3", "generic", ""),
    ("unsloth-Apriel-1.5", "tool-calls", "<|end|>"),
    ("unsloth-mistral-Devstral-Small-2507", "mistral-args", "</s>"),
    ("upstage-Solar-Open-100B", "generic", ""),
];

/// Vocabularies whose models compose texts (NFC) first, as their `tokenizer.json` says; llama.cpp's vectors are of the
/// pre-tokenizer alone.
const COMPOSING: [&str; 1] = ["ggml-vocab-qwen35"];

fn folder() -> PathBuf {
    std::env::var_os("BASERT_LLAMA_CPP_MODELS").expect("run tools/llama-cpp-models").into()
}

fn files(folder: PathBuf, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

#[test]
#[ignore = "tools/llama-cpp-models runs it"]
fn vocabularies() {
    let (mut same, mut composed, mut differing, mut opened) = (0, 0, Vec::new(), 0);
    for path in files(folder(), "gguf") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = ModelFile::open(&path).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf_vocabulary(&model)).unwrap_or_else(|error| panic!("{name}: {error}"));
        opened += 1;
        let read = |extension| std::fs::read_to_string(path.with_extension(extension));
        let (Ok(texts), Ok(expected)) = (read("gguf.inp"), read("gguf.out")) else { continue };
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        for (text, expected) in texts.iter().zip(expected) {
            let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            if ids == expected.trim() {
                same += 1;
            } else if COMPOSING.contains(&&*name) && text.nfc().ne(text.chars()) {
                composed += 1;
            } else {
                differing.push(format!("{name}: {text:?}\n    found {ids}\n expected {}", expected.trim()));
            }
        }
    }
    println!("{opened} vocabularies opened, {same} texts the same, {composed} composed here and not in llama.cpp");
    assert!(differing.is_empty() && same > 650, "{} differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
#[ignore = "tools/llama-cpp-models runs it"]
fn templates() {
    let goldens: Value = serde_json::from_slice(&std::fs::read(folder().join("templates.json")).unwrap()).unwrap();
    let requests = goldens["requests"].as_object().unwrap();
    let (mut same, mut refused, mut more, mut differing) = (0, 0, 0, Vec::new());
    for (name, expected) in goldens["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder().join("templates").join(name)).unwrap();
        let variables = goldens["variables"].as_object().unwrap().clone();
        let template = match ChatTemplate::new(&source) {
            Ok(template) => template.with_variables(variables),
            Err(error) => {
                differing.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (case, request) in requests {
            let list = |key: &str| request[key].as_array().map(Vec::as_slice);
            let empty = Map::new();
            let rendered = template.render(&ChatRequest {
                messages: list("messages").unwrap(),
                tools: list("tools"),
                documents: list("documents"),
                add_generation_prompt: request["add_generation_prompt"] == true,
                variables: Some(request["variables"].as_object().unwrap_or(&empty)),
            });
            match (rendered, expected[case].as_str()) {
                (Ok(rendered), Some(expected)) if rendered == expected => same += 1,
                (Err(_), None) => refused += 1,
                // minijinja takes none for an empty list, and goes on.
                (Ok(_), None) => more += 1,
                // Jinja2 escapes what is added to a text that is marked as safe.
                (Ok(_), Some(expected)) if source.contains("safe") && expected.contains("&#34;") => more += 1,
                (found, expected) => {
                    differing.push(format!("{name}, {case}\n    found {found:?}\n expected {expected:?}"))
                }
            }
        }
    }
    println!("{same} texts the same, {refused} refused by both, {more} rendered where Jinja2 fails or escapes");
    assert!(differing.is_empty() && same > 700, "{} differ:\n{}", differing.len(), differing.join("\n"));
}

/// Each template shows its dialect, and names whatever ends an answer, unless only the model's file does.
#[test]
#[ignore = "tools/llama-cpp-models runs it"]
fn dialects_and_ends() {
    let mut wrong = Vec::new();
    for path in files(folder().join("templates"), "jinja") {
        let name = path.file_stem().unwrap().to_string_lossy();
        let source = std::fs::read_to_string(&path).unwrap();
        let Some((_, dialect, end)) = TEMPLATES.iter().find(|(known, ..)| *known == name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        let found = Dialect::of_template(&source);
        if found.name() != *dialect {
            wrong.push(format!("{name}: {}; expected {dialect}", found.name()));
        }
        let is_written = source.contains(end) || *end == "</s>";
        let tokenizer = byte_tokenizer(&["</s>", end]);
        let id = if *end == "</s>" { 256 } else { 257 };
        let ends = is_written && tokenizer.end_of_generation().contains(&id);
        if !end.is_empty() && !ends {
            wrong.push(format!("{name}: {end} does not end an answer"));
        }
    }
    println!("{} templates whose dialect is known", TEMPLATES.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

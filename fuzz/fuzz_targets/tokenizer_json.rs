//! A tokenizer from a Hugging Face folder. The input is `tokenizer.json`, `tokenizer_config.json`,
//! `generation_config.json` and a text, with a zero byte after each of the first three.
#![no_main]

use basert_text::{EncodeOptions, HuggingFaceFiles, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // Panics inside the tokenizers library are caught and become errors: only those that come out count.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let mut parts = bytes.splitn(4, |&byte| byte == 0);
        let files = HuggingFaceFiles {
            tokenizer: parts.next().unwrap_or_default(),
            config: parts.next().filter(|part| !part.is_empty()),
            generation_config: parts.next().filter(|part| !part.is_empty()),
        };
        let text = String::from_utf8_lossy(parts.next().unwrap_or(b"Hello  world\n"));
        let tokenizer = match Tokenizer::from_hf_files(files) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                let _ = error.to_string();
                return;
            }
        };
        for (add_special, parse_special) in [(true, true), (false, false)] {
            match tokenizer.encode(&text, EncodeOptions { add_special, parse_special }) {
                Ok(ids) => drop(tokenizer.decode(&ids, false)),
                Err(error) => drop(error.to_string()),
            }
        }
        let every: Vec<u32> = (0..=tokenizer.vocab_size() as u32).collect();
        let _ = tokenizer.decode(&every, true);
        let _ = tokenizer.template_variables();
        assert!(tokenizer.end_of_generation().iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }
);

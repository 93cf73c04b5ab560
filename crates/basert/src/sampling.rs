//! The sampling settings that a model's files recommend.

use basert_engine::{Sampling, SamplingOptions};
use basert_files::{Kind, ModelFile, Value};

/// A setting with its names: after `general.sampling.` in GGUF files, as llama.cpp writes them, and in
/// `generation_config.json`.
struct Setting {
    gguf: &'static str,
    hugging_face: &'static str,
    set: fn(&mut SamplingOptions, f64),
}

const SETTINGS: [Setting; 7] = [
    Setting { gguf: "temp", hugging_face: "temperature", set: |o, x| o.temperature = Some(x as f32) },
    // Some write -1 for all tokens.
    Setting { gguf: "top_k", hugging_face: "top_k", set: |o, x| o.top_k = Some(x as usize) },
    Setting { gguf: "top_p", hugging_face: "top_p", set: |o, x| o.top_p = Some(x as f32) },
    Setting { gguf: "min_p", hugging_face: "min_p", set: |o, x| o.min_p = Some(x as f32) },
    Setting {
        gguf: "penalty_repeat",
        hugging_face: "repetition_penalty",
        set: |o, x| o.repeat_penalty = Some(x as f32),
    },
    Setting {
        gguf: "penalty_present",
        hugging_face: "presence_penalty",
        set: |o, x| o.presence_penalty = Some(x as f32),
    },
    Setting {
        gguf: "penalty_freq",
        hugging_face: "frequency_penalty",
        set: |o, x| o.frequency_penalty = Some(x as f32),
    },
];

/// The default settings of a model: its own, and basert's for those that it does not have. Also returns messages about
/// wrong settings, which are ignored.
pub(crate) fn of_model(file: &ModelFile) -> (Sampling, Vec<String>) {
    let (mut own, mut faults) = (SamplingOptions::default(), Vec::new());
    for Setting { gguf, hugging_face, set } in &SETTINGS {
        let key = match file.kind() {
            Kind::Gguf => format!("general.sampling.{gguf}"),
            Kind::HuggingFace => format!("generation_config.{hugging_face}"),
        };
        let Some(value) = file.get(&key) else { continue };
        let mut with = own.clone();
        let fault = match value.as_f64() {
            Some(number) if *gguf == "top_k" && (number.fract() != 0.0 || number < -1.0) => {
                Some(format!("{number} is not a number of tokens"))
            }
            Some(number) => {
                set(&mut with, number);
                with.over(&Sampling::usual()).check().err().map(|error| error.to_string())
            }
            None => Some("it is not a number".to_owned()),
        };
        match fault {
            None => own = with,
            Some(fault) => faults.push(format!("the model's {key} is ignored: {fault}")),
        }
    }
    if file.get("generation_config.do_sample").and_then(Value::as_bool) == Some(false) {
        own.temperature = Some(0.0);
    }
    (Sampling { seed: 0, ..own.over(&Sampling::usual()) }, faults)
}

#[cfg(test)]
mod tests {
    use basert_files::gguf::Writer;

    use super::*;

    fn gguf(fill: impl FnOnce(&mut Writer)) -> (Sampling, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new();
        writer.set("general.architecture", "llama").unwrap();
        fill(&mut writer);
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, writer.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
        of_model(&ModelFile::open(&path).unwrap())
    }

    fn folder(config: &str) -> (Sampling, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(basert_testkit::tiny().join("qwen2")).unwrap() {
            let file = entry.unwrap().path();
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        std::fs::write(folder.path().join("generation_config.json"), config).unwrap();
        of_model(&ModelFile::open(folder.path()).unwrap())
    }

    #[test]
    fn what_a_model_recommends_is_taken_and_the_rest_is_as_usual() {
        assert_eq!(gguf(|_| {}), (Sampling::usual(), vec![]));
        let (of_gguf, faults) = gguf(|writer| {
            writer.set("general.sampling.temp", &0.6_f32).unwrap();
            writer.set("general.sampling.top_k", &-1_i32).unwrap();
            writer.set("general.sampling.penalty_repeat", &1.05_f32).unwrap();
        });
        assert_eq!(faults, [""; 0]);
        assert_eq!(of_gguf, Sampling { temperature: 0.6, top_k: 0, repeat_penalty: 1.05, ..Sampling::usual() });
        let (of_folder, faults) =
            folder(r#"{"temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0, "repetition_penalty": null}"#);
        assert_eq!(faults, [""; 0]);
        let expected = Sampling { temperature: 0.6, top_k: 20, top_p: 0.8, min_p: 0.0, ..Sampling::usual() };
        assert_eq!(of_folder, expected);
        assert_eq!(folder(r#"{"do_sample": false, "temperature": 0.6}"#).0.temperature, 0.0);
        assert_eq!(folder(r#"{"do_sample": true}"#).0, Sampling::usual());
    }

    #[test]
    fn what_makes_no_sense_is_ignored_with_a_word() {
        let (sampling, faults) = folder(r#"{"temperature": -1, "top_p": "high", "top_k": 2.5, "min_p": 1e300}"#);
        assert_eq!(sampling, Sampling::usual());
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(faults[0].contains("generation_config.temperature is ignored: temperature is -1"), "{faults:?}");
        assert_eq!(gguf(|writer| writer.set("general.sampling.temp", &f32::NAN).unwrap()).1.len(), 1);
    }
}

//! Models that rank texts, and dense layers after pooling, against sentence-transformers.

use std::path::Path;

use basert::{DeviceKind, Generation, Model, Options};
use serde_json::Value;

fn open(path: &Path, device: DeviceKind) -> Model {
    Model::open(path, Options { device, threads: Some(1), max_context: Some(128), ..Options::default() }).unwrap()
}

fn expected(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path.join("expected.json")).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn cross_encoders_agree_with_sentence_transformers() {
    for name in ["bert", "bert-raw", "xlm-roberta", "distilbert", "electra", "modernbert", "qwen3"] {
        let path = basert_testkit::rankers().join(name);
        let expected = expected(&path);
        let documents: Vec<String> = list(&expected["documents"]);
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let query = expected["query"].as_str().unwrap();
        for (device, most) in [(DeviceKind::Reference, 2e-4), (DeviceKind::Cpu, 1e-2)] {
            let model = open(&path, device);
            let request = model.rank_request(query, &documents, None, usize::MAX).unwrap();
            let (graph, tokens) = (&model.plan().graph, list::<Vec<u32>>(&expected["tokens"]));
            let of = |(token, kind): (u32, u32)| token + kind * graph.vocabulary as u32;
            let types = list::<Vec<u32>>(&expected["types"]);
            let tokens: Vec<Vec<u32>> = tokens
                .into_iter()
                .zip(types)
                .map(|(tokens, types)| {
                    tokens
                        .into_iter()
                        .zip(types)
                        .map(|(token, kind)| of((token, kind * u32::from(graph.segments > 1))))
                        .collect()
                })
                .collect();
            assert_eq!(request.prompts, tokens, "{name}");
            let found = model.rank(query, &documents).unwrap();
            for (found, expected) in found.iter().zip(list::<f32>(&expected["scores"])) {
                assert!((found - expected).abs() < most, "{name} on {device}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn a_long_document_is_cut_and_the_query_is_not() {
    let path = basert_testkit::rankers().join("bert");
    let model = open(&path, DeviceKind::Cpu);
    let request = model.rank_request("a lamp?", &[&"tower ".repeat(50)], None, 40).unwrap();
    let whole = model.rank_request("a lamp?", &[&"tower ".repeat(50)], None, usize::MAX).unwrap();
    let (cut, whole) = (&request.prompts[0], &whole.prompts[0]);
    assert_eq!((cut.len(), &cut[..39], cut[39]), (40, &whole[..39], *whole.last().unwrap()));
    let error = model.rank("a lamp?", &[&"tower ".repeat(50)]).map(|_| ()).err();
    assert!(error.is_none(), "what is too long for the model is cut: {error:?}");
}

#[test]
fn models_that_do_not_rank_say_so() {
    let path = basert_testkit::rankers().join("dense-two");
    let error = open(&path, DeviceKind::Cpu).rank("a", &["b"]).unwrap_err().to_string();
    assert!(error.contains("was not trained to rank"), "{error}");
    let model = open(&basert_testkit::rankers().join("bert"), DeviceKind::Cpu);
    let error = model.pooling().unwrap_err().to_string();
    assert!(error.contains("ranks or classifies"), "{error}");
    assert!(model.generate("a", &Generation::default(), |_| true).is_err());
}

/// A model that is asked whether a document is relevant has two rows of its output compared.
#[test]
fn a_chat_model_ranks_by_whether_it_would_say_yes() {
    let model = Model::open(basert_testkit::smollm2(), Options::default()).unwrap();
    let documents = ["Paris is the capital of France.", "Bread is made of flour."];
    let request = model.rank_request("What is the capital of France?", &documents, None, usize::MAX).unwrap();
    let found = model.rank("What is the capital of France?", &documents).unwrap();
    for (prompt, found) in request.prompts.into_iter().zip(found) {
        let logits = model.logits(prompt).unwrap();
        let id = |text: &str| model.tokenizer().encode(text, Default::default()).unwrap()[0] as usize;
        let expected = 1.0 / (1.0 + (logits[id("no")] - logits[id("yes")]).exp());
        assert!((found - expected).abs() < 2e-2, "{found} instead of {expected}");
    }
}

#[test]
fn dense_layers_agree_with_sentence_transformers() {
    for name in ["dense-tanh", "dense-two"] {
        let path = basert_testkit::rankers().join(name);
        let expected = expected(&path);
        for (device, most) in [(DeviceKind::Reference, 2e-4), (DeviceKind::Cpu, 1e-2)] {
            let model = open(&path, device);
            let texts: Vec<String> = list(&expected["texts"]);
            let tokens = texts.iter().map(|text| model.text_tokens(text).unwrap()).collect();
            let found = model.embed(tokens, model.pooling().unwrap()).unwrap();
            let vectors: Vec<Vec<f32>> = list(&expected["vectors"]);
            for (found, expected) in found.iter().zip(&vectors) {
                assert_eq!(found.len(), expected.len());
                let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < most, "{name} on {device}: {error}");
            }
        }
    }
}

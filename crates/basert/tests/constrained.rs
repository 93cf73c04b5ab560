//! Answers that follow a grammar, drawn from a real model and from logits that mean nothing.

use basert::{Answer, Error, Finish, Generation, Grammar, Model, Options, Sampler, Sampling};
use serde_json::{Value, json};

fn model() -> Model {
    Model::open(basert_testkit::smollm2(), Options { max_context: Some(512), ..Options::default() }).unwrap()
}

fn answer(model: &Model, prompt: &str, grammar: Grammar, temperature: f32, max_tokens: usize) -> Answer {
    let sampling = Sampling { temperature, seed: 3, ..Sampling::default() };
    let options = Generation {
        max_tokens: Some(max_tokens),
        sampling: sampling.into(),
        grammar: Some(grammar),
        ..Generation::default()
    };
    let mut streamed = String::new();
    let answer = model.generate(prompt, &options, |piece| {
        streamed.push_str(piece);
        true
    });
    let answer = answer.unwrap();
    assert_eq!(answer.text, streamed);
    answer
}

fn city() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
            "capital": {"type": "boolean"},
        },
        "required": ["city", "population", "capital"],
        "additionalProperties": false,
    })
}

fn check_city(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    assert!(value["city"].as_str().unwrap().chars().count() <= 20, "{text}");
    assert!((0.0..1e8).contains(&value["population"].as_f64().unwrap()) && value["capital"].is_boolean(), "{text}");
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
}

#[test]
fn a_model_answers_by_a_grammar() {
    let model = model();
    for temperature in [0.0, 0.7, 1.5] {
        let answer = answer(&model, "Paris as JSON: ", Grammar::JsonSchema(city()), temperature, 400);
        assert_eq!(answer.finish, Some(Finish::End), "{:?}", answer.text);
        check_city(&answer.text);
    }
    let yes = answer(&model, "Is Paris in France? Answer: ", Grammar::Regex("yes|no".into()), 0.0, 10);
    assert!((yes.text == "yes" || yes.text == "no") && yes.finish == Some(Finish::End), "{yes:?}");
    // It ends where nothing can follow, without computing the token that says so.
    let forced = answer(&model, "Count: ", Grammar::Gbnf("root ::= \"1, 2\"".into()), 1.0, 10);
    assert_eq!((forced.text.as_str(), forced.finish), ("1, 2", Some(Finish::End)));
    let cut = answer(&model, "JSON: ", Grammar::JsonSchema(city()), 0.0, 2);
    assert_eq!((cut.finish, cut.tokens.len()), (Some(Finish::Length), 2));
}

#[test]
fn a_grammar_that_lets_all_through_changes_nothing() {
    let model = model();
    let free = model.generate(
        "The capital of France is",
        &Generation { max_tokens: Some(12), ..Generation::greedy() },
        |_| true,
    );
    let any = answer(&model, "The capital of France is", Grammar::Regex("(?s:.*)".into()), 0.0, 12);
    assert_eq!(any.tokens, free.unwrap().tokens);
}

#[test]
fn what_is_masked_is_never_drawn_whatever_the_logits() {
    let model = model();
    let start = model.constraint(&Grammar::JsonSchema(city())).unwrap();
    let (tokenizer, vocabulary) = (model.tokenizer(), model.plan().graph.vocabulary);
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let settings = [
        Sampling::default(),
        Sampling { temperature: 1.0, ..Sampling::default() },
        Sampling { temperature: 5.0, top_k: 3, repeat_penalty: 0.5, ..Sampling::default() },
        Sampling { temperature: 0.7, top_p: 0.1, min_p: 0.5, frequency_penalty: -2.0, ..Sampling::default() },
        // What is masked stays so, however much it is asked for.
        Sampling { logit_bias: (0..2000).map(|token| (token, f32::INFINITY)).collect(), ..Sampling::default() },
        Sampling {
            temperature: 1.0,
            logit_bias: (0..9000).map(|token| (token, -1e30)).collect(),
            ..Sampling::default()
        },
    ];
    let mut ended = 0;
    for sampling in settings {
        for seed in 0..3 {
            let mut constraint = start.clone();
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }, &[]).unwrap();
            let mut tokens = Vec::new();
            while !constraint.is_finished() && tokens.len() < 500 {
                let mut logits: Vec<f32> = (0..vocabulary).map(|_| 20.0 * noise() - 10.0).collect();
                logits[tokens.len() % vocabulary] = f32::NAN;
                logits[(7 * tokens.len()) % vocabulary] = f32::NEG_INFINITY;
                let token = sampler.next_of(&logits, constraint.mask().unwrap()).unwrap();
                assert!(constraint.allows(token).unwrap());
                constraint.accept(token).unwrap();
                tokens.push(token);
            }
            if constraint.is_finished() {
                ended += 1;
                check_city(&tokenizer.decode(&tokens, true));
            }
        }
    }
    assert!(ended >= 6, "{ended} of 18 answers ended");
}

#[test]
fn a_schema_that_cannot_be_honoured_is_refused_before_anything_is_computed() {
    let grammar = Some(Grammar::JsonSchema(json!({"properties": {"a": {"not": {}}}})));
    let options = Generation { grammar, ..Generation::default() };
    let error = model().generate("x", &options, |_| true).unwrap_err();
    assert!(matches!(&error, Error::Grammar(_)) && error.to_string().contains("/properties/a"), "{error}");
}

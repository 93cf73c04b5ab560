//! Documents by their relevance.

use basert::{Loaded, Options};
use serde_json::{Value, json};

use crate::server::{Running, config};

fn ranker() -> Loaded {
    let options = Options { threads: Some(1), max_context: Some(128), ..Options::default() };
    Loaded::open(basert_testkit::rankers().join("bert"), options).unwrap()
}

#[test]
fn documents_come_by_their_relevance() {
    let server = Running::with(config(), "ranks", ranker);
    let file = std::fs::read(basert_testkit::rankers().join("bert/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&file).unwrap();
    let (query, documents) = (&expected["query"], expected["documents"].as_array().unwrap());
    let body = json!({ "model": "ranks", "query": query, "documents": documents });
    let answer = server.ask("/v1/rerank", &body);
    let results = answer["results"].as_array().unwrap();
    assert_eq!((answer["model"].as_str(), results.len()), (Some("ranks"), documents.len()));
    let tokens: usize =
        expected["tokens"].as_array().unwrap().iter().map(|tokens| tokens.as_array().unwrap().len()).sum();
    assert_eq!(answer["usage"]["total_tokens"], tokens);
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    assert!(results.is_sorted_by(|a, b| score(a) >= score(b)), "{answer}");
    for result in results {
        let expected = expected["scores"][result["index"].as_u64().unwrap() as usize].as_f64().unwrap();
        assert!((score(result) - expected).abs() < 1e-2 && result["document"].is_null(), "{answer}");
    }
    // Fewer of them, with their texts, which may come as objects; more than are computed together.
    let many: Vec<Value> = (0..20).map(|i| json!({ "text": documents[i % documents.len()] })).collect();
    let body = json!({ "query": query, "documents": many, "top_n": 3, "return_documents": true });
    for path in ["/v2/rerank", "/rerank"] {
        let top = server.ask(path, &body);
        let top = top["results"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["document"]["text"], documents[results[0]["index"].as_u64().unwrap() as usize]);
        assert_eq!(score(&top[0]), score(&results[0]));
    }
}

#[test]
fn what_cannot_be_ranked_is_refused() {
    let server = Running::with(config(), "ranks or not", ranker);
    let long = "tower ".repeat(60);
    let body = json!({ "query": "a lamp?", "documents": ["a", long] });
    let (status, error) = server.refused("/v1/rerank", &body);
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("documents")), "{error}");
    for more in
        [json!({ "truncate": true }), json!({ "truncate_prompt_tokens": 100 }), json!({ "max_tokens_per_doc": 50 })]
    {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(server.ask("/v1/rerank", &body)["results"].as_array().unwrap().len(), 2);
    }
    let (status, error) = server.refused("/v1/rerank", &json!({ "query": "a", "documents": [] }));
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("documents")), "{error}");
    let (status, error) = server.refused("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("model")), "{error}");

    let other = Running::start("does not rank");
    let (status, error) = other.refused("/v1/rerank", &json!({ "query": "a", "documents": ["b"] }));
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("model")), "{error}");
}

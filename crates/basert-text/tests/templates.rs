//! Rendered chat templates are, byte for byte, those of `transformers`; written by tools/template-goldens.py.

mod common;

use basert_text::{ChatRequest, ChatTemplate, TemplateError};
use serde_json::{Value, json};

fn render(source: &str, variables: &Value, request: &Value) -> Result<String, TemplateError> {
    let list = |key: &str| request[key].as_array().map(Vec::as_slice);
    ChatTemplate::new(source)?.with_variables(variables.as_object().cloned().unwrap_or_default()).render(&ChatRequest {
        messages: list("messages").unwrap(),
        tools: list("tools"),
        documents: list("documents"),
        add_generation_prompt: request["add_generation_prompt"] == true,
        variables: request["variables"].as_object(),
    })
}

/// Checks a rendering against the expected text, or null where the reference fails too.
fn difference(name: &str, found: Result<String, TemplateError>, expected: &Value) -> Option<String> {
    match (found, expected.as_str()) {
        (Ok(found), Some(expected)) if found == expected => None,
        (Err(_), None) => None,
        (found, expected) => Some(format!("{name}\n    found {found:?}\n expected {expected:?}")),
    }
}

#[test]
fn published_templates() {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    let (mut cases, mut wrong) = (0, Vec::new());
    for (name, template) in goldens["templates"].as_object().unwrap() {
        for (case, request) in goldens["requests"].as_object().unwrap() {
            let found = render(template["source"].as_str().unwrap(), &template["variables"], request);
            wrong.extend(difference(&format!("{name}, {case}"), found, &template["expected"][case]));
            cases += 1;
        }
    }
    assert!(wrong.is_empty() && cases > 250, "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_jinja_and_python_do() {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    let snippets = &goldens["snippets"];
    let mut wrong = Vec::new();
    for snippet in snippets["expected"].as_array().unwrap() {
        let source = snippet[0].as_str().unwrap();
        wrong.extend(difference(source, render(source, &snippets["variables"], &snippets["request"]), &snippet[1]));
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn error(source: &str) -> String {
    let request = json!({"messages": [{"role": "user", "content": "Hi"}]});
    render(source, &Value::Null, &request).expect_err("an error").to_string()
}

#[test]
fn errors_name_line_and_reason() {
    assert_eq!(
        error("{% if true %}\nx\n{% endfor %}"),
        "the chat template does not parse: line 3: unknown statement endfor"
    );
    assert_eq!(
        error("a\n\n{{ raise_exception('Roles must alternate') }}"),
        "the chat template failed: line 3: Roles must alternate"
    );
    assert!(error("{{ messages[0].content | shout }}").contains("line 1: filter shout is unknown"));
    assert!(error("\n{{ missing.attribute }}").contains("line 2"));
    assert!(error("{{ 'x' | tojson(indent=100) }}").contains("cannot indent by 100"));
}

#[test]
fn messages_are_objects() {
    let template = ChatTemplate::new("{{ messages }}").unwrap();
    let request = ChatRequest { messages: &[json!({"role": "user"}), json!("hi")], ..Default::default() };
    let error = template.render(&request).unwrap_err().to_string();
    assert_eq!(error, "messages[1]: \"hi\"; expected an object with a role and a content");
}

#[test]
fn work_output_and_depth_are_limited() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("out of fuel") || error(endless).contains("bytes of output"), "{}", error(endless));
    let silent = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}";
    assert!(error(silent).contains("fuel"), "{}", error(silent));
    let large = "{% set x = 'x' * 1000000 %}{% for a in range(99) %}{{ x }}{% endfor %}";
    assert!(error(large).contains("more than 67108864 bytes of output"), "{}", error(large));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(error(deep).contains("recursion"), "{}", error(deep));
    let nested = format!("{{{{ {}1{} | tojson }}}}", "[".repeat(140), "]".repeat(140));
    assert!(render(&nested, &Value::Null, &json!({"messages": []})).is_ok() || error(&nested).contains("recursion"));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(error(&parens).contains("recursion"), "{}", error(&parens));
}

#[test]
fn now_is_local_time() {
    let format = "%Y-%m-%d %H";
    let now = || jiff::Zoned::now().strftime(format).to_string();
    let request = json!({"messages": []});
    let rendered = || render(&format!("{{{{ strftime_now('{format}') }}}}"), &Value::Null, &request).unwrap();
    let (before, found, after) = (now(), rendered(), now());
    assert!(found == before || found == after, "{found}");
    assert!(error("{{ strftime_now('%Q%!') }}").contains("strftime_now"));
}

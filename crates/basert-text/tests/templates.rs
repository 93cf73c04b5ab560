//! Rendered chat templates are, byte for byte, those of `transformers`; written by tools/template-goldens.py.

use basert_text::{ChatRequest, ChatTemplate, TemplateError};
use serde_json::{Value, json};

use crate::common;

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
    assert!(is_too_large(&error(large), "output"), "{}", error(large));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(error(deep).contains("recursion"), "{}", error(deep));
    let nested = format!("{{{{ {}1{} | tojson }}}}", "[".repeat(140), "]".repeat(140));
    assert!(render(&nested, &Value::Null, &json!({"messages": []})).is_ok() || error(&nested).contains("recursion"));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000));
    assert!(error(&parens).contains("recursion"), "{}", error(&parens));
}

/// Whether a template was refused for making more than 4 MiB, and a little for what it was given.
fn is_too_large(error: &str, what: &str) -> bool {
    let bytes = error.split_once("more than ").and_then(|(_, rest)| rest.split_once(" bytes of "));
    bytes.is_some_and(|(bytes, rest)| {
        rest.starts_with(what) && bytes.parse().is_ok_and(|bytes: usize| (4 << 20..(4 << 20) + 4096).contains(&bytes))
    })
}

/// The longest template that is `head`, a repeated `link` and `tail`.
fn chain(head: &str, link: &str, tail: &str) -> String {
    let count = ((64 << 10) - head.len() - tail.len()) / link.len();
    format!("{head}{}{tail}", link.repeat(count))
}

#[test]
fn long_chains_do_not_overflow_the_stack() {
    let request = json!({"messages": [{"role": "user"}]});
    for (head, link, tail) in [
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ 1", "**1", " }}"),
        ("{{ 1", "<1", " }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", " is defined", " }}"),
        ("{{ x", "()", " }}"),
        ("{{ messages", ".a", " }}"),
        ("{{ messages", "[0]", " }}"),
        ("{{ messages", "|list", " }}"),
        ("{{ ", "1 if 1 else ", "1 }}"),
        ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        ("{% set ", "(", "x = 1 %}"),
        ("{% set x", ".a", " = 1 %}"),
        ("{% set x = 1", "-1", " %}"),
        ("{% for ", "(", "x in y %}{% endfor %}"),
    ] {
        // Whether it renders or fails, it comes back, and on a stack as small as any thread's.
        let source = chain(head, link, tail);
        let request = request.clone();
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        thread.spawn(move || drop(render(&source, &Value::Null, &request))).unwrap().join().unwrap();
    }
    let source = " ".repeat((64 << 10) + 1);
    let expected = "the chat template does not parse: line 1: a template of 65537 bytes; expected up to 65536";
    assert_eq!(error(&source), expected);
    assert!(render(&source[1..], &Value::Null, &request).is_ok());
}

/// `change` in a loop of many rounds, with a namespace `n` in which `x` is `start`.
fn accumulate(start: &str, change: &str) -> String {
    format!("{{% set n = namespace(x={start}) %}}{{% for i in range(90000) %}}{change}{{% endfor %}}{{{{ n.x }}}}")
}

#[test]
fn values_cannot_grow_deep() {
    for (start, value) in [("[]", "[n.x]"), ("{}", "{'a': n.x}"), ("[]", "[[n.x], 1]"), ("()", "(n.x, 1)")] {
        let found = error(&accumulate(start, &format!("{{% set n.x = {value} %}}")));
        assert!(found.contains("a value nested deeper than 200"), "{value}: {found}");
    }
    // Views of views are no deeper than lists.
    let request = json!({"messages": []});
    for (start, value, expected) in [
        ("[1, 2]", "n.x[:]", "[1, 2]"),
        ("[[1]]", "[n.x[0][:]]", "[[1]]"),
        ("{'a': [1]}", "{'a': n.x.a[:]}", r#"{"a": [1]}"#),
    ] {
        let source = accumulate(start, &format!("{{% set n.x = {value} %}}"));
        let found = render(&source, &Value::Null, &request).unwrap();
        assert_eq!(found.replace('\'', "\""), expected);
    }
}

#[test]
fn nothing_contains_itself() {
    for value in ["n", "[n]", "dict(a=n)", "n|items", "[n.items()]", "n.values()", "[[n]]|select", "[n][:]"] {
        let found = error(&format!("{{% set n = namespace(x=1) %}}{{% set n.x = {value} %}}{{{{ n }}}}"));
        assert!(found.contains("a namespace can be neither kept in a namespace nor taken apart"), "{value}: {found}");
    }
    let unpacked = "{% set n = namespace(x=1) %}{% set (n.x), y = [n], 1 %}{{ n }}";
    assert!(error(unpacked).contains("a namespace can be neither"));
    let through_a_loop = "{% set n = namespace(x=1) %}{% for a in [1, n] %}{% if loop.first %}{% set n.x = [loop] %}{% endif %}{{ n }}{% endfor %}";
    assert!(error(through_a_loop).contains("a loop can be neither"));
}

#[test]
fn values_cannot_grow_large() {
    let straight = format!("{{% set x = 'abcdefgh' %}}{}", "{% set x = x ~ x %}".repeat(60));
    for source in [
        &accumulate("'abcdefgh'", "{% set n.x = n.x ~ n.x %}"),
        &accumulate("'abcdefgh'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        &accumulate("'abcdefgh'", "{% set n.x | indent(width=4) %}{{ n.x }}{{ n.x }}{% endset %}"),
        &accumulate("'aa'", "{% set n.x = n.x|replace('', n.x) %}"),
        &accumulate("'aa'", "{% set n.x = n.x.replace('a', 'aa') %}"),
        &straight,
        "{% set x = 'x' * 60000 %}{{ range(60000)|join(x) }}",
        "{% set x = 'x' * 60000 %}{{ range(60000)|join(d=x) }}",
        "{% set x = 'x' * 60000 %}{{ x.join(range(60000)) }}",
        "{{ 'x\ny'|indent(999999999) }}",
        "{{ 'x\ny'|indent(width=999999999) }}",
        "{{ '%999999999d'|format(1) }}",
        "{{ '%*d'|format(999999999, 1) }}",
        "{{ '%.99999999999999999999d'|format(1) }}",
        "{{ '{:999999999d}'.format(1) }}",
    ] {
        let found = error(source);
        assert!(is_too_large(&found, "text"), "{source}: {found}");
    }
    for value in ["n.x + n.x", "[n.x, n.x]"] {
        let found = error(&accumulate("[1]", &format!("{{% set n.x = {value} %}}")));
        assert!(found.contains("more than 1000000 values in one"), "{value}: {found}");
    }
    assert!(error("{{ [1]|batch(999999999, 'x')|list }}").contains("a count of 999999999; expected up to 1000000"));
    assert!(error("{{ [1]|slice(999999999)|list }}").contains("a count of 999999999; expected up to 1000000"));
}

#[test]
fn limits_change_nothing_else() {
    let renders = |source: &str, expected: &str| {
        let request = json!({"messages": []});
        assert_eq!(render(source, &Value::Null, &request).unwrap(), expected, "{source}");
    };
    renders("{% set x = 1, 2 %}{% set a, b = x -%}\n {{ a }}{{ b }}{{ x[1] }}", "122");
    renders("{% set x = 1 if false %}{{ x is undefined }}{% set y = nothing %}{{ y is undefined }}", "TrueTrue");
    renders("{%- set n = namespace(x='%}') -%}{%- set n.x = n.x ~ '=' if true -%} {{ n.x }}", "%}=");
    renders("{% set x | upper %}a=b{% endset %}{{ x }}{% set y %}{{ x }}{% endset %}{{ y }}", "A=BA=B");
    renders(
        "{% raw %}{% set x = 1 %}{% endraw %}{# {% set #}{{ '{% set x = 1 %}' }}",
        "{% set x = 1 %}{% set x = 1 %}",
    );
    renders(
        "{% set n = namespace(l=[]) %}{% for i in range(3) %}{% set n.l = n.l + [i] %}{% endfor %}{{ n.l }}",
        "[0, 1, 2]",
    );
    renders(
        "{{ '%(a)s%(b)3d|%%'|format(a='x', b=3) }}{{ '{:>3}{x}'.format(1, x=2) }}{{ 'a\nb'|indent(width=2) }}",
        "x  3|%  12a\n  b",
    );
    renders(
        "{{ [{'a': 1}, {'a': 2}]|join('-', attribute='a') }}{{ 'aa'|replace('a', 'b') }}{{ [1, 2, 3]|batch(2)|list }}",
        "1-2bb[[1, 2], [3]]",
    );
    renders(
        "{% set d = {'a': 1} %}{% for k, v in d|items %}{{ k }}{{ v }}{% endfor %}{{ d.items()|list|length }}",
        "a11",
    );
}

#[test]
fn panics_of_the_library_are_errors() {
    // Overflows where the build checks for that, and wraps harmlessly elsewhere.
    let source = "{{ messages[::-9223372036854775808] }}";
    let request = json!({"messages": [{"role": "user"}]});
    match render(source, &Value::Null, &request) {
        Err(error) => assert!(error.to_string().contains("minijinja panicked"), "{error}"),
        Ok(text) => assert!(text.starts_with('['), "{text}"),
    }
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

/// Expressions and statements of Jinja give the text that Jinja2 gives; `tools/jinja-goldens.py` wrote it.
#[test]
fn jinja_is_that_of_jinja2() {
    let goldens: Value = serde_json::from_str(&common::data("jinja.json")).unwrap();
    let variables = goldens["variables"].as_object().unwrap();
    let mut wrong = Vec::new();
    for case in goldens["expected"].as_array().unwrap() {
        let (source, expected) = (case[0].as_str().unwrap(), case[1].as_str());
        let request = ChatRequest { variables: Some(variables), ..ChatRequest::default() };
        let found = ChatTemplate::new(source).and_then(|template| template.render(&request));
        // Where Jinja2 fails, and minijinja takes what is none for empty, that is no harm.
        if expected.is_some() && found.as_deref().ok() != expected {
            wrong.push(format!("{source:?}\n    found {found:?}\n expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

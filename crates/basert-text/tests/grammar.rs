//! What grammars let through, and what they refuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use basert_text::{
    CallGrammar, Constraint, Detokenizer, Dialect, Event, Grammar, GrammarCompiler, ParserOptions, Preface, Tokenizer,
};
use serde_json::{Value, json};

use crate::common::{self, Random, admits, wander};

fn bytes() -> (Arc<Tokenizer>, GrammarCompiler) {
    let tokenizer = Arc::new(common::byte_tokenizer(&["<|im_end|>"]));
    let compiler = GrammarCompiler::new(Arc::clone(&tokenizer)).unwrap();
    (tokenizer, compiler)
}

fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids, true)
}

fn check(grammar: Grammar, good: &[&str], bad: &[&str]) {
    let (_, compiler) = bytes();
    let constraint = compiler.compile(&grammar).unwrap_or_else(|error| panic!("{grammar:?}: {error}"));
    for text in good {
        assert!(admits(&constraint, text), "{grammar:?} does not admit {text:?}");
    }
    for text in bad {
        assert!(!admits(&constraint, text), "{grammar:?} admits {text:?}");
    }
}

#[test]
fn objects_and_schemas() {
    let spaced = |count: usize| format!("{{{}}}", " ".repeat(count));
    check(Grammar::JsonObject, &[&spaced(32)], &[&spaced(33)]);
    check(Grammar::JsonSchema(json!(true)), &["1", "[null]"], &["", "x"]);
    check(
        Grammar::JsonObject,
        &["{}", "{\"a\": [1, {\"é\": null}]}", "{\n  \"a\":1}"],
        &["", "[]", "1", "{", "{\"a\":}", "{} x"],
    );
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 3}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
        "additionalProperties": false,
    });
    check(
        Grammar::JsonSchema(schema),
        &["{\"name\": \"é🌧a\"}", "{\"name\":\"\",\"age\":12}"],
        &["{}", "{\"name\": \"abcd\"}", "{\"name\":\"\",\"age\":-1}", "{\"name\":\"\",\"more\":1}", "{\"age\":1}"],
    );
}

#[test]
fn regular_expressions_match_the_whole_text() {
    check(Grammar::Regex("(ab|c)+[0-9]{2}".into()), &["ab12", "cab00"], &["", "ab1", "ab123", "x", "ab12 "]);
    check(Grammar::Regex("a/b\\d".into()), &["a/b1"], &["a/b"]);
}

#[test]
fn lark() {
    let grammar = "start: greeting (\",\" greeting)*\ngreeting: \"hello\" | \"hi\" NAME\nNAME: /[a-z]+/";
    check(Grammar::Lark(grammar.into()), &["hello", "hiann,hello"], &["", "hi", "hello,"]);
}

#[test]
fn gbnf() {
    let list = "# A list.\nroot ::= item (\", \" item)*\nitem ::= [a-z]+ | \"\\\"\" [^\"\\n]{0,3} \"\\\"\"\n";
    check(
        Grammar::Gbnf(list.into()),
        &["a", "ab, \"x\"", "\"\", \"é\u{20AC}!\""],
        &["", "a,", "A", "\"abcd\"", "\"\n\""],
    );
    let arithmetic = "root  ::= expr\nexpr ::= term ([-+] term)*\nterm ::= number | \"(\" ws expr ws \")\"\nnumber ::= [0-9]+ ws\nws ::= [ \\t\\n]*";
    check(
        Grammar::Gbnf(arithmetic.into()),
        &["1", "(1+2) -3".replace(") ", ")").as_str(), "( (1) )", "12 + 3".replace("+ ", "+").as_str()],
        &["", "1+", "()", "(1", "+1"],
    );
    let json = r#"root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    check(
        Grammar::Gbnf(json.into()),
        &["{}", "{\"a\": [1, -2.5e3, true], \"b\": {\"c\": \"\\n\u{e9}\"}}"],
        &["{", "[1]", "{\"a\" 1}", "{\"a\": tru}"],
    );
    // A rule may go on over lines, and reach itself from the left.
    check(
        Grammar::Gbnf("root ::= root \"a\" |\n  \"b\" .? \nother ::= \"x\"".into()),
        &["b", "bxaa"],
        &["", "a", "xx"],
    );
    check(Grammar::Gbnf("root ::= [\\]a\\-c]+ \"\\x41\\u00e9\"".into()), &["]a-cAé"], &["bAé", "A"]);
}

#[test]
fn mistakes_in_grammars_are_named() {
    let (_, compiler) = bytes();
    let error = |grammar: Grammar| compiler.compile(&grammar).unwrap_err().to_string();
    let gbnf = |source: &str| error(Grammar::Gbnf(source.into()));
    assert_eq!(gbnf("rot ::= \"a\""), "grammar: there is no rule root");
    assert_eq!(gbnf("root ::= b"), "grammar: rule root: there is no rule b");
    assert_eq!(gbnf("root ::= \"a\"\nroot ::= \"b\""), "grammar: there are two rules root");
    assert!(gbnf("root ::= \"a\"\n\n  ) x").contains("line 3: found \") x\""), "{}", gbnf("root ::= \"a\"\n\n  ) x"));
    assert!(gbnf("root ::= \"a").contains("no end"));
    assert!(gbnf("root ::= [z-a]").contains("range"));
    assert!(gbnf("root ::= \"a\"{5,2}").contains("repetitions"));
    assert!(gbnf(&format!("root ::= {}", "(".repeat(100_000))).contains("200 brackets"));
    assert_eq!(gbnf(""), "grammar: empty");
    assert!(error(Grammar::Regex("(a".into())).starts_with("regular expression: "));
    assert!(error(Grammar::Regex("a\\b".into())).starts_with("regular expression: "));
    assert!(error(Grammar::Lark("start: missing".into())).contains("missing"));
}

#[test]
fn schemas_that_cannot_be_honoured_are_refused_where() {
    let (_, compiler) = bytes();
    let error = |schema: Value| compiler.compile(&Grammar::JsonSchema(schema)).unwrap_err().to_string();
    let found =
        error(json!({"properties": {"a": {"items": {"type": "string", "contentSchema": {}, "pattern": "(?=x)"}}}}));
    assert!(found.starts_with("schema at /properties/a/items: "), "{found}");
    let found = error(json!({"type": "object", "properties": {"a/b": {"not": {"type": "null"}}}}));
    assert!(found.starts_with("schema at /properties/a~1b: ") && found.contains("not"), "{found}");
    let found = error(json!({"$defs": {"x": {"uniqueItems": true}}, "properties": {"a": {"$ref": "#/$defs/x"}}}));
    assert!(found.starts_with("schema at /$defs/x: ") && found.contains("uniqueItems"), "{found}");
    let found = error(json!({"type": "string", "x-guidance": {"lenient": true}}));
    assert_eq!(found, "schema at /x-guidance: not supported");
    assert_eq!(error(json!([])), "schema: expected an object or a boolean");
    assert!(error(json!({"allOf": [{"type": "string"}, {"type": "null"}]})).starts_with("schema"));
    assert!(error(json!(false)).starts_with("schema"));
    assert!(error(json!({"$ref": "#/nowhere"})).starts_with("schema"));
}

#[test]
fn what_refers_to_itself_without_an_end_is_refused() {
    let (_, compiler) = bytes();
    let itself = json!({"$ref": "#/$defs/a"});
    for (schema, fine) in [
        (json!({"$defs": {"a": itself}, "type": "object", "properties": {"x": itself}, "required": ["x"]}), false),
        (json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": itself}, "anyOf": [itself]}), false),
        (json!({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}), false),
        (json!({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), false),
        (json!({"type": "object", "properties": {"x": {"$ref": "#"}}}), true),
        (json!({"type": "array", "items": {"$ref": "#"}}), true),
        (
            json!({"$defs": {"a": {"anyOf": [{"type": "null"}, {"type": "array", "items": itself, "minItems": 1}]}}, "anyOf": [itself]}),
            true,
        ),
    ] {
        match compiler.compile(&Grammar::JsonSchema(schema.clone())) {
            Ok(_) => assert!(fine, "{schema}"),
            Err(error) => assert!(!fine && error.to_string().contains("round in a circle"), "{schema}: {error}"),
        }
    }
}

/// Schemas as programs make them of types: what is relaxed compiles, and still lets through what it should.
#[test]
fn keywords_that_no_mask_holds_are_taken_out_with_a_note() {
    let text = json!({"type": "string"});
    let part = |tag: &str| json!({"type": "object", "properties": {"k": {"const": tag}}, "required": ["k"]});
    for (schema, notes, good, bad) in [
        (json!({"type": "string", "format": "password"}), &["format 'password'"][..], "\"x\"", "1"),
        (json!({"type": "string", "format": "date"}), &[], "\"2020-01-01\"", "\"x\""),
        (json!({"type": "array", "items": text, "uniqueItems": true}), &["uniqueItems"], "[\"a\"]", "[1]"),
        (json!({"type": "array", "items": text, "uniqueItems": false}), &[], "[\"a\"]", "[1]"),
        (json!({"type": "object", "propertyNames": {"type": "string"}}), &[], "{\"a\":1}", "1"),
        (
            json!({"type": "object", "propertyNames": {"$ref": "#/$defs/n"}, "additionalProperties": {"type": "integer"},
                "$defs": {"n": {"enum": ["a", "b"]}}}),
            &[],
            "{\"b\":1}",
            "{\"c\":1}",
        ),
        (json!({"type": "object", "propertyNames": {"pattern": "^[a-z]$"}}), &[], "{\"a\":1}", "{\"A\":1}"),
        (json!({"type": "object", "propertyNames": {"minLength": 2}}), &["propertyNames"], "{\"a\":1}", "1"),
        (json!({"type": "object", "properties": {"a": {"not": {}}, "b": text}}), &[], "{\"b\":\"\"}", "{\"a\":1}"),
        (json!({"type": "string", "not": {"const": "x"}}), &["not"], "\"y\"", "1"),
        (json!({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}), &["if", "then"], "{}", "1"),
        (json!({"type": "array", "contains": {}, "items": text}), &[], "[\"a\"]", "[1]"),
        (json!({"oneOf": [text, {"type": "integer"}]}), &[], "1", "null"),
        (json!({"oneOf": [part("a"), part("b")]}), &[], "{\"k\":\"b\"}", "{\"k\":\"c\"}"),
        (
            json!({"items": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0}]}, "type": "array"}),
            &["that only one part of oneOf holds at /items"],
            "[1.5]",
            "[null]",
        ),
    ] {
        let (relaxed, found) = basert_text::relaxed(&schema);
        assert_eq!(found, notes, "{schema}");
        check(Grammar::JsonSchema(relaxed), &[good], &[bad]);
    }
}

#[test]
fn bombs_are_refused_in_time() {
    let (_, compiler) = bytes();
    let mut doubling = json!({"type": "object", "properties": {}});
    for i in 0..40 {
        let next = format!("#/$defs/d{}", i + 1);
        doubling["$defs"][format!("d{i}")] = json!({"allOf": [{"$ref": next}, {"$ref": next}]});
    }
    doubling["$defs"]["d40"] = json!({"type": "string"});
    doubling["properties"]["a"] = json!({"$ref": "#/$defs/d0"});
    let mut nested = json!({"type": "string"});
    for _ in 0..80 {
        nested = json!({"items": nested});
    }
    let wide: Vec<Value> = (0..60_000).map(|i| json!({"const": i})).collect();
    let crossed: Vec<Value> = (0..12)
        .map(|i| json!({"anyOf": (0..12).map(|j| json!({"properties": {format!("p{i}{j}"): {"type": "string"}}})).collect::<Vec<_>>()}))
        .collect();
    // Rules that go on from each other, and many ways to go on from one.
    let chain = |count: usize, rule: &dyn Fn(usize) -> String, last: &str| {
        let rules: String = (0..count).map(|i| format!("r{i} ::= {}\n", rule(i + 1))).collect();
        format!("root ::= r0\n{rules}r{count} ::= {last}")
    };
    let around = |i| format!("r{i} | \"a\" r{i} \"b\"");
    let across = |i: usize| format!("r{} \"a\" | r{} \"b\" | \"c\"", i * 7 % 15_000, i * 3 % 15_000);
    let ways: Vec<String> = (0..40_000).map(|i| format!("\"w{i}\" root")).collect();
    let bombs = [
        Grammar::Gbnf(chain(30_000, &|i| format!("r{i}"), "\"x\"")),
        Grammar::Gbnf(chain(20_000, &around, "\"x\"")),
        Grammar::Gbnf(chain(20_000, &around, "\"x\" | root")),
        Grammar::Gbnf(chain(15_000, &across, "\"x\"")),
        Grammar::Gbnf(format!("root ::= {} | \"x\"", ways.join(" | "))),
        Grammar::Gbnf(format!("root ::= {} \"x\"", "root? ".repeat(5000))),
        Grammar::Lark(format!("start: {} | \"x\"", ways.join(" | ").replace("root", "start"))),
        Grammar::JsonSchema(doubling),
        Grammar::JsonSchema(nested),
        Grammar::JsonSchema(json!({"anyOf": wide})),
        Grammar::JsonSchema(json!({"allOf": crossed})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"})),
        Grammar::JsonSchema(json!({"$ref": "#"})),
        Grammar::Regex("((a?){1000}){1000}".into()),
        Grammar::Regex("(.*a.{20}b.{20}){50}".into()),
        Grammar::Gbnf(format!("root ::= {}", "(\"a\"? ".repeat(150) + &"){0,9}".repeat(150))),
        Grammar::Gbnf(
            (0..60).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect::<String>()
                + "r60 ::= \"a\"\nroot ::= r0",
        ),
        Grammar::Lark(format!("start: {}", "x ".repeat(400_000) + "\nx: \"a\"")),
    ];
    for bomb in bombs {
        let began = Instant::now();
        let result = compiler.compile(&bomb);
        // What compiles must also be usable.
        if let Ok(mut constraint) = result {
            let _ = constraint.accept(u32::from(b'a'));
            let _ = constraint.mask();
        }
        let name = format!("{bomb:?}").chars().take(80).collect::<String>();
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
    }
}

#[test]
fn answers_drawn_at_random_are_valid() {
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "items": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 5}, "maxItems": 4},
            "text": {"type": "string", "maxLength": 8},
            "flag": {"type": ["boolean", "null"]},
        },
        "required": ["kind", "items"],
        "additionalProperties": false,
    });
    let is_valid = |value: &Value| {
        // -0 is an integer too.
        let items = value["items"].as_array().unwrap();
        assert!(value["kind"] == "a" || value["kind"] == "b");
        assert!(
            items.len() <= 4
                && items
                    .iter()
                    .all(|item| item.as_f64().unwrap().abs() <= 5.0 && item.as_f64().unwrap().fract() == 0.0)
        );
        assert!(value.get("text").is_none_or(|text| text.as_str().unwrap().chars().count() <= 8));
        assert!(value.get("flag").is_none_or(|flag| flag.is_boolean() || flag.is_null()));
        assert!(value.as_object().unwrap().len() <= 4);
    };
    for tokenizer in [
        common::byte_tokenizer(&["<|im_end|>"]),
        common::from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf"),
        common::from_json("qwen3"),
    ] {
        let tokenizer = Arc::new(tokenizer);
        let compiler = GrammarCompiler::new(Arc::clone(&tokenizer)).unwrap();
        let constraint = compiler.compile(&Grammar::JsonSchema(schema.clone())).unwrap();
        let mut ended = 0;
        for seed in 0..60 {
            let (ids, has_ended) = wander(&tokenizer, &constraint, &mut Random(seed), 400);
            let text = text_of(&tokenizer, &ids);
            if has_ended {
                ended += 1;
                is_valid(&serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}")));
            }
        }
        assert!(ended > 30, "{ended} of 60 answers ended");
    }
}

#[test]
fn copies_go_their_own_ways() {
    let (_, compiler) = bytes();
    let mut a = compiler.compile(&Grammar::Regex("ab|ac".into())).unwrap();
    a.accept(u32::from(b'a')).unwrap();
    let mut b = a.clone();
    a.accept(u32::from(b'b')).unwrap();
    assert!(b.allows(u32::from(b'c')).unwrap() && a.is_finished() && !b.can_end());
    b.accept(u32::from(b'c')).unwrap();
    // Only the end may follow, and it may be told of.
    let only_end: Vec<u32> = (0..257).filter(|&id| b.allows(id).unwrap()).collect();
    assert_eq!(only_end, [256]);
    b.accept(256).unwrap();
    assert!(b.is_finished() && b.can_end());
    let error = compiler.compile(&Grammar::Regex("a".into())).unwrap().accept(u32::from(b'b')).unwrap_err();
    assert_eq!(error.to_string(), "the grammar cannot continue: token 98, \"b\", is not allowed here");
}

fn tools() -> Vec<Value> {
    vec![
        json!({"type": "function", "function": {"name": "add", "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"enum": ["m", "ft\n"]}},
            "required": ["a"], "additionalProperties": false,
        }}}),
        json!({"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}}),
    ]
}

/// What an answer says, as it would be streamed.
fn parse(dialect: &Arc<Dialect>, tokenizer: &Tokenizer, prompt: &str, ids: &[u32]) -> Vec<Event> {
    let mut parser = dialect.parser(ParserOptions { prompt, tools: &tools(), ..Default::default() });
    let mut detokenizer = Detokenizer::continuing(tokenizer, true).showing(dialect.tokens(tokenizer));
    let mut events = Vec::new();
    let mut text = String::new();
    ids.iter().for_each(|&id| detokenizer.push(id, &mut text));
    events.extend(parser.push(&text));
    events.extend(parser.finish());
    events
}

/// Checks calls drawn at random: nothing but whole calls of tools. Returns how many there were in each answer.
fn calls(
    dialect: &str,
    tokenizer: &Arc<Tokenizer>,
    named: Option<&str>,
    several: bool,
    prompt: &str,
    reasons: bool,
) -> Vec<usize> {
    let dialect = Dialect::named(dialect).unwrap();
    let compiler = GrammarCompiler::new(Arc::clone(tokenizer)).unwrap();
    let grammar = Grammar::Calls(CallGrammar::new(Arc::clone(&dialect), &tools(), named, several).unwrap());
    let preface = Preface::OfDialect { dialect: Arc::clone(&dialect), prompt: prompt.into(), reasons };
    let constraint =
        compiler.compile_after(&grammar, &preface).unwrap_or_else(|error| panic!("{}: {error}", dialect.name()));
    let mut counts = Vec::new();
    for seed in 0..25 {
        let (ids, ended) = wander(tokenizer, &constraint, &mut Random(seed), 3000);
        let text = tokenizer.decode(&ids, false);
        if !ended {
            continue;
        }
        let events = parse(&dialect, tokenizer, prompt, &ids);
        let mut arguments = String::new();
        let mut count = 0;
        for event in &events {
            match event {
                Event::Reasoning(_) => assert!(reasons, "{text}"),
                Event::CallBegan { name, id, .. } => {
                    assert!(named.is_none_or(|named| named == name) && !id.is_empty(), "{text}");
                    arguments.clear();
                }
                Event::Arguments { delta, .. } => arguments.push_str(delta),
                Event::CallEnded { .. } => {
                    count += 1;
                    let value: Value = serde_json::from_str(&arguments).unwrap();
                    assert!(
                        value.get("a").is_none_or(|a| (0..100).contains(&a.as_i64().unwrap_or_default())),
                        "{text}"
                    );
                }
                other => panic!("{}: {other:?} in {text:?}", dialect.name()),
            }
        }
        assert!(count > 0 && (several || count == 1), "{}: {count} calls in {text:?}", dialect.name());
        counts.push(count);
    }
    assert!(counts.len() > 10, "{}: only {} answers ended", dialect.name(), counts.len());
    counts
}

const CONTROL: [&str; 17] = [
    "<|im_end|>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<｜tool▁call▁begin｜>",
    "</seed:think>",
    "<|END_THINKING|>",
    "<|inner_suffix|>",
    "<channel|>",
];

#[test]
fn calls_that_are_asked_for_are_what_the_dialect_reads() {
    let plain = Arc::new(common::byte_tokenizer(&["<|im_end|>"]));
    let control = Arc::new(common::byte_tokenizer(&CONTROL));
    for dialect in Dialect::names() {
        for tokenizer in [&plain, &control] {
            let [begun, prompt] = if dialect == "harmony" { ["<|start|>assistant"; 2] } else { ["", "<think>\n"] };
            calls(dialect, tokenizer, Some("add"), false, begun, false);
            let counts = calls(dialect, tokenizer, None, true, begun, false);
            assert!(dialect == "harmony" || counts.iter().any(|&count| count > 1), "{dialect}: {counts:?}");
            // Nobody spells the end of a thought by chance.
            if Arc::ptr_eq(tokenizer, &control) {
                calls(dialect, tokenizer, None, false, prompt, true);
            }
        }
    }
    for (family, dialect) in
        [("qwen3", "hermes"), ("llama3_1", "llama3"), ("gptoss", "harmony"), ("deepseek_v3", "deepseek")]
    {
        calls(dialect, &Arc::new(common::from_json(family)), None, true, "<|start|>assistant", false);
    }
}

/// With tools and a format, an answer is calls, or a text of that format, and both come about.
#[test]
fn answers_call_tools_or_have_a_format() {
    let plain = Arc::new(common::byte_tokenizer(&["<|im_end|>"]));
    let control = Arc::new(common::byte_tokenizer(&CONTROL));
    let city = Grammar::JsonSchema(json!({
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 3}}, "required": ["city"],
        "additionalProperties": false,
    }));
    for name in Dialect::names() {
        let dialect = Dialect::named(name).unwrap();
        let calls = CallGrammar::new(Arc::clone(&dialect), &tools(), None, false).unwrap();
        let grammar = Grammar::CallsOr(calls, Box::new(city.clone()));
        let prompt = if name == "harmony" { "<|start|>assistant" } else { "" };
        for tokenizer in [&plain, &control] {
            let compiler = GrammarCompiler::new(Arc::clone(tokenizer)).unwrap();
            let of_dialect =
                |reasons| Preface::OfDialect { dialect: Arc::clone(&dialect), prompt: prompt.into(), reasons };
            let (mut called, mut texts) = (0, 0);
            // Without its header, a text of harmony's is none.
            let without = (name != "harmony").then_some(Preface::None);
            for preface in [of_dialect(false), of_dialect(true)].into_iter().chain(without) {
                let constraint = compiler.compile_after(&grammar, &preface).unwrap();
                let answers = (0..25).map(|seed| wander(tokenizer, &constraint, &mut Random(seed), 1000));
                for (ids, _) in answers.filter(|(_, ended)| *ended) {
                    let (mut text, mut calls) = (String::new(), 0);
                    for event in parse(&dialect, tokenizer, prompt, &ids) {
                        match event {
                            Event::Content(more) => text.push_str(&more),
                            Event::CallEnded { .. } => calls += 1,
                            _ => {}
                        }
                    }
                    if calls > 0 {
                        assert!(text.is_empty(), "{name}: {text:?} beside a call");
                        called += 1;
                    } else {
                        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: {text:?}"));
                        assert!(value["city"].is_string(), "{name}: {text:?}");
                        texts += 1;
                    }
                }
            }
            assert!(called > 0 && texts > 0, "{name}: {called} calls, {texts} texts");
        }
    }
    let (_, compiler) = bytes();
    let calls = CallGrammar::new(Dialect::named("hermes").unwrap(), &tools(), None, false).unwrap();
    let wrong = Grammar::CallsOr(calls, Box::new(Grammar::Regex("(".into())));
    assert!(compiler.compile(&wrong).unwrap_err().to_string().starts_with("regular expression: "));
}

#[test]
fn tools_that_cannot_be_asked_for_are_named() {
    let (_, compiler) = bytes();
    let dialect = Dialect::named("hermes").unwrap();
    let new = |tools: &[Value], named| CallGrammar::new(Arc::clone(&dialect), tools, named, false);
    let error = |tools: &[Value], named| new(tools, named).unwrap_err().to_string();
    assert_eq!(error(&tools(), Some("sub")), "tools: there is none called sub");
    assert_eq!(error(&[], None), "tools: there are none to be called");
    let function = |function: Value| [json!({"type": "function", "function": function})];
    assert!(error(&function(json!({"name": "a b"})), None).contains("name 0 is \"a b\""));
    assert!(error(&function(json!({"name": "a", "parameters": {"type": "string"}})), None).contains("of a are not"));
    let bad = new(&function(json!({"name": "a", "parameters": {"properties": {"x": {"not": {}}}}})), None).unwrap();
    let error = compiler.compile(&Grammar::Calls(bad)).unwrap_err().to_string();
    assert!(error.starts_with("tools: a: schema at /properties/x: "), "{error}");
}

/// Whether the constraint admits a text in which control tokens are written out.
fn admits_tokens(tokenizer: &Tokenizer, constraint: &Constraint, text: &str) -> bool {
    let ids = tokenizer.encode(text, basert_text::EncodeOptions { parse_special: true, ..Default::default() }).unwrap();
    let mut constraint = constraint.clone();
    ids.into_iter().all(|id| constraint.allows(id).unwrap() && constraint.accept(id).is_ok()) && constraint.can_end()
}

#[test]
fn reasoning_comes_before_the_grammar() {
    let control = Arc::new(common::byte_tokenizer(&CONTROL));
    let plain = Arc::new(common::byte_tokenizer(&["<|im_end|>"]));
    for tokenizer in [&plain, &control] {
        let compiler = GrammarCompiler::new(Arc::clone(tokenizer)).unwrap();
        let check = |dialect: &str, prompt: &str, reasons, good: &[&str], bad: &[&str]| {
            let dialect = Dialect::named(dialect).unwrap();
            let preface = Preface::OfDialect { dialect, prompt: prompt.into(), reasons };
            for grammar in [
                Grammar::Regex("yes|no".into()),
                Grammar::Lark("start: \"yes\" | \"no\"".into()),
                Grammar::Gbnf("root ::= \"yes\" | \"no\"".into()),
            ] {
                let constraint = compiler.compile_after(&grammar, &preface).unwrap();
                for text in good {
                    assert!(admits_tokens(tokenizer, &constraint, text), "{grammar:?} does not admit {text:?}");
                }
                for text in bad {
                    assert!(!admits_tokens(tokenizer, &constraint, text), "{grammar:?} admits {text:?}");
                }
            }
        };
        check("hermes", "", false, &["yes"], &["<think>a</think>yes", "maybe"]);
        check(
            "hermes",
            "",
            true,
            &["yes", "<think>\nmaybe\n</think>\n\nno", "<think></think>no"],
            &["a</think>yes", "<think>a"],
        );
        check("hermes", "<think>\n", true, &["maybe\n</think>\n\nno", "</think>yes"], &["yes", "yes</think>"]);
        let prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
        let last = "<|channel|>final<|message|>yes";
        check(
            "harmony",
            prompt,
            true,
            &[last, &format!("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{last}")],
            &["yes", "<|channel|>final<|message|>maybe", "<|channel|>analysis<|message|>Hm."],
        );
        check("harmony", &format!("{prompt}<|channel|>final<|message|>"), true, &["yes"], &[last]);
    }
}

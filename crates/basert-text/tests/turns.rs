//! What was parsed from an answer is, put back into the conversation, the same text again.

use std::sync::Arc;

use basert_text::{Chat, ChatTemplate, Dialect, Ending, Event, ParserOptions};
use serde_json::{Map, Value, json};

use crate::common;

/// The message that an API makes of the events.
fn message(events: &[Event]) -> Value {
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for event in events {
        match event {
            Event::Content(text) => content.push_str(text),
            Event::Reasoning(text) => reasoning.push_str(text),
            Event::CallBegan { id, name, .. } => calls.push((id.clone(), name.clone(), String::new())),
            Event::Arguments { index, delta } => calls[*index].2.push_str(delta),
            Event::CallEnded { .. } => {}
            Event::CallBroken { .. } => panic!("a broken call"),
        }
    }
    let mut message = json!({"role": "assistant", "content": content});
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        let function = |name, arguments| json!({"name": name, "arguments": arguments});
        message["tool_calls"] = calls
            .into_iter()
            .map(|(id, name, arguments)| json!({"id": id, "type": "function", "function": function(name, arguments)}))
            .collect();
    }
    message
}

fn template(name: &str) -> (String, Map<String, Value>) {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    let template = &goldens["templates"][name];
    (template["source"].as_str().unwrap().into(), template["variables"].as_object().unwrap().clone())
}

fn tools() -> Vec<Value> {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "description": "…", "parameters": {"type": "object", "properties": {}}}});
    vec![tool("add"), tool("time")]
}

fn prompt(dialect: &Dialect, template: &ChatTemplate, messages: &[Value], ending: Ending) -> String {
    let chat = Chat { messages, tools: &tools(), ending, ..Chat::default() };
    dialect.prompt(template, &common::byte_tokenizer(&["<|im_end|>"]), &chat).unwrap().text
}

/// The next prompt after an answer, which has to begin with the prompt before it and the answer.
fn next(dialect: &Arc<Dialect>, template: &ChatTemplate, messages: &[Value], answer: &str) -> (String, String) {
    let before = prompt(dialect, template, messages, Ending::Answer);
    let mut parser = dialect.parser(ParserOptions { prompt: &before, tools: &tools(), ..Default::default() });
    let mut events = parser.push(answer);
    events.extend(parser.finish());
    let all = [messages, &[message(&events)]].concat();
    (before + answer, prompt(dialect, template, &all, Ending::Nothing))
}

#[test]
fn answers_render_as_they_were_written() {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let two = format!("{}\n{}", call("add", "{\"a\": [1, 2.5, \"é\\n\"], \"b\": {\"c\": null}}"), call("time", "{}"));
    let list = "[{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abc123XYZ\"}, {\"name\": \"time\", \"arguments\": {}, \"id\": \"123456789\"}]";
    let cases = [
        ("qwen3", format!("<think>\nHm.\n\nYes.\n</think>\n\n{two}")),
        ("qwen3", format!("<think>\nHm.\n</think>\n\nI add.\n{two}")),
        ("qwen3", "<think>\nHm.\n</think>\n\nHello.\n\nBye.".into()),
        // Qwen 3's template copies arguments that are text.
        ("qwen3", format!("<think>\nHm.\n</think>\n\n{}", call("add", "{\"a\":1,  \"b\" : 1e2}"))),
        ("qwen2_5", two.clone()),
        ("qwen2_5", format!("I add.\n{two}")),
        ("qwen2_5", "Hello.".into()),
        ("smollm2", "Hello.\n".into()),
        // Its template has no place for calls: they are content.
        ("smollm2", two.clone()),
        ("smollm2", format!("I add.\n{two}")),
        ("gemma3", "I add.\n```tool_code\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n```".into()),
        ("mistral tools", format!("[TOOL_CALLS] {list}")),
        ("mistral", call("add", "{\"a\": 1}")),
        ("llama3", "{\"name\": \"add\", \"parameters\": {\"a\": 1}}".into()),
        ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>".into()),
    ];
    for (name, answer) in cases {
        let (source, variables) = template(name);
        let dialect = Dialect::of_template(&source);
        let template = ChatTemplate::new(&source).unwrap().with_variables(variables);
        let (written, rendered) = next(&dialect, &template, &[json!({"role": "user", "content": "Go on."})], &answer);
        assert!(rendered.starts_with(&written), "{name}:\n written {written:?}\nrendered {rendered:?}");
    }
}

#[test]
fn templates_without_tools_are_told_of_them() {
    for name in ["smollm2", "gemma3", "mistral", "llama3", "llama3_1"] {
        let (source, variables) = template(name);
        let dialect = Dialect::of_template(&source);
        let template = ChatTemplate::new(&source).unwrap().with_variables(variables);
        let call =
            json!({"id": "call12345", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}});
        let messages = [
            json!({"role": "user", "content": "What is 1 + 1?"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call.clone(), call]}),
            json!({"role": "tool", "tool_call_id": "call12345", "content": "two"}),
            json!({"role": "tool", "tool_call_id": "call12345", "content": [{"type": "text", "text": "deux"}]}),
        ];
        let prompt = prompt(&dialect, &template, &messages, Ending::Answer);
        for part in ["\"name\":\"add\"", "\"name\":\"time\"", "{\"a\": 1}", "two", "deux", "What is 1 + 1?"] {
            assert_eq!(
                prompt.matches(part).count(),
                if part == "{\"a\": 1}" { 2 } else { 1 },
                "{name}: {part} in {prompt}"
            );
        }
    }
}

#[test]
fn ids_that_are_left_out_are_filled_in() {
    let template = ChatTemplate::new(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}<{{ c.id }}>{% endfor %}\
         {% if m.role == 'tool' %}<{{ m.tool_call_id }}>{% endif %}{{ m.content }}{% endfor %}",
    )
    .unwrap();
    let dialect = Dialect::named("generic").unwrap();
    let call = |id: Value| json!({"id": id, "type": "function", "function": {"name": "add", "arguments": "{}"}});
    let result = |id: Value| json!({"role": "tool", "tool_call_id": id, "content": "1"});
    let turn = |calls: Value| json!({"role": "assistant", "content": "", "tool_calls": calls});
    let messages = [
        json!({"role": "user", "content": "x"}),
        turn(json!([call(Value::Null), call(json!("")), call(json!("given"))])),
        // The one that says which call it answers need not be the last.
        result(json!("given")),
        result(Value::Null),
        result(json!("")),
        turn(json!([call(json!("not answered"))])),
        turn(json!([call(json!("last"))])),
        result(Value::Null),
    ];
    let tokenizer = common::byte_tokenizer(&["<|im_end|>"]);
    let rendered = |messages: &[Value]| {
        dialect.prompt(&template, &tokenizer, &Chat { messages, ending: Ending::Nothing, ..Chat::default() })
    };
    let text = rendered(&messages).unwrap().text;
    let ids: Vec<&str> = text.split(['<', '>']).skip(1).step_by(2).collect();
    let [one, two, three, by_third, by_first, by_second, _, last, by_last] = ids[..] else { panic!("{text}") };
    assert_eq!([by_first, by_second, by_third, by_last], [one, two, three, last], "{text}");
    assert!(one != two && three == "given" && last == "last", "{text}");
    let one_more = [&messages[..], &[result(Value::Null)]].concat();
    let error = rendered(&one_more).unwrap_err().to_string();
    assert!(error.starts_with("messages[8].tool_call_id: none; expected the id of a call"), "{error}");
}

/// Templates that take ids of nine letters and digits alone get them, whoever made the call.
#[test]
fn ids_of_calls_have_the_form_that_the_template_takes() {
    let template = ChatTemplate::new(
        "[TOOL_CALLS]{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}\
         {{ raise_exception('ids have nine letters') }}{% endif %}<{{ c.id }}>{{ c.function|tojson }}{% endfor %}\
         {% if m.role == 'tool' %}<{{ m.tool_call_id }}>{% endif %}{{ m.content }}{% endfor %}",
    )
    .unwrap();
    let dialect = Dialect::named("mistral").unwrap();
    let function = json!({"name": "add", "arguments": "{}"});
    let call = |id: &str| json!({"id": id, "type": "function", "function": function});
    let messages = [
        json!({"role": "user", "content": "x"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call("toolu_01A"), call("abcdefgh1")]}),
        json!({"role": "tool", "tool_call_id": "abcdefgh1", "content": "1"}),
        json!({"role": "tool", "tool_call_id": "toolu_01A", "content": "2"}),
    ];
    let text = prompt(&dialect, &template, &messages, Ending::Nothing);
    let ids: Vec<&str> = text.split(['<', '>']).skip(1).step_by(2).collect();
    assert_eq!(ids.len(), 4, "{text}");
    assert!(ids[0] == ids[3] && ids[1] == ids[2] && ids[1] == "abcdefgh1" && ids[0] != "toolu_01A", "{text}");
}

/// The calls of events: names, and arguments as JSON.
fn calls(events: &[Event]) -> Vec<(String, Value)> {
    let message = message(events);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let call = |call: &Value| {
        let [name, arguments] = ["name", "arguments"].map(|key| call["function"][key].as_str().unwrap());
        (name.to_owned(), serde_json::from_str(arguments).unwrap())
    };
    calls.map(call).collect()
}

/// Where a template has no place for calls, they are written as each dialect reads them.
#[test]
fn calls_in_the_content_are_what_the_dialect_reads() {
    let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}").unwrap();
    let arguments = [
        json!({"zone": "a \"b\"\n'c' <d>", "n": -3, "on": false, "list": [1.5, true, null, {"k": "v, {w}"}], "any": {"x": []}}),
        json!({}),
    ];
    let call = |name: &str, arguments: &Value| json!({"id": "1", "type": "function", "function": {"name": name, "arguments": arguments.to_string()}});
    for name in Dialect::names() {
        let dialect = Dialect::named(name).unwrap();
        // Its messages begin with a header each, which only templates write.
        let (count, prompt) = if name == "harmony" { (1, "<|start|>assistant") } else { (2, "") };
        let written = [call("add", &arguments[0]), call("time", &arguments[1])];
        let messages =
            [json!({"role": "user"}), json!({"role": "assistant", "content": "", "tool_calls": written[..count]})];
        let chat = Chat { messages: &messages, ending: Ending::Nothing, ..Chat::default() };
        let text = dialect.prompt(&template, &common::byte_tokenizer(&["</s>"]), &chat).unwrap().text;
        let answer = text.rsplit_once("<assistant>").unwrap().1;
        let tools = ["add", "time"].map(common::tool);
        let mut parser = dialect.parser(ParserOptions { prompt, tools: &tools, ..Default::default() });
        let events = [parser.push(answer), parser.finish()].concat();
        let expected: Vec<_> =
            ["add", "time"].map(str::to_owned).into_iter().zip(arguments.clone()).take(count).collect();
        assert_eq!(calls(&events), expected, "{name}: {answer}");
    }
}

/// Ids that name the tool are what their template wants, whoever made the call.
#[test]
fn ids_that_name_the_tool_are_made_for_other_calls() {
    let template = ChatTemplate::new(
        "<|tool_call_begin|>{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}<{{ c.function.name }}<|tool_call_argument_begin|>\
         {{ c.function.arguments }};{% endfor %}{% if m.role == 'tool' %}{{ m.tool_call_id }};{% endif %}{% endfor %}",
    )
    .unwrap();
    let dialect = Dialect::named("kimi").unwrap();
    let call =
        |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
    let messages = [
        json!({"role": "user", "content": "x"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call("toolu_01A", "add"), call("functions.time:7", "time")]}),
        json!({"role": "tool", "tool_call_id": "functions.time:7", "content": "1"}),
        json!({"role": "tool", "tool_call_id": "toolu_01A", "content": "2"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call("functions.time:0", "add")]}),
    ];
    let text = prompt(&dialect, &template, &messages, Ending::Nothing);
    let ids: Vec<&str> = text.split(['>', '<', ';']).filter(|part| part.starts_with("functions.")).collect();
    assert_eq!(ids, ["functions.add:0", "functions.time:7", "functions.time:7", "functions.add:0", "functions.add:2"]);
}

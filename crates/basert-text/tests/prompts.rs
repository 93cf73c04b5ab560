//! Prompts of chats: whose text may become a control token, what templates refuse, and answers that are continued.

use basert_text::{Chat, ChatRequest, ChatTemplate, Dialect, EncodeOptions, Ending, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}{{ tools | tojson(ensure_ascii=true) if tools else '' }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn chat(messages: &[Value]) -> Chat<'_> {
    Chat { messages, ..Chat::default() }
}

fn text(source: &str, messages: Value) -> String {
    let template = ChatTemplate::new(source).unwrap();
    let tokenizer = common::byte_tokenizer(&["<|im_end|>"]);
    let messages = messages.as_array().unwrap();
    Dialect::of_template(source).prompt(&template, &tokenizer, &chat(messages)).unwrap().text
}

/// The published templates of the families whose tokenizers are at hand.
fn families() -> Vec<(ChatTemplate, std::sync::Arc<Dialect>, Tokenizer)> {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    let tokenizers = [
        ("qwen3", common::from_json("qwen3")),
        ("llama3_1", common::from_json("llama3_1")),
        ("deepseek_v3", common::from_json("deepseek_v3")),
        ("gemma3", common::from_gguf_file("gemma-3-270m-q4_k_m.gguf")),
        ("smollm2", common::from_gguf_file("SmolLM2-135M-Instruct.Q4_1.gguf")),
    ];
    let family = |(name, tokenizer): (&str, Tokenizer)| {
        let source = goldens["templates"][name]["source"].as_str().unwrap();
        let template = ChatTemplate::new(source).unwrap().with_variables(tokenizer.template_variables());
        (template, Dialect::of_template(source), tokenizer)
    };
    tokenizers.into_iter().map(family).collect()
}

#[test]
fn harmless_text_is_tokenised_as_ever() {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    let corpus = common::corpus();
    for (template, dialect, tokenizer) in families() {
        let requests = goldens["requests"].as_object().unwrap().iter();
        let parse = EncodeOptions { add_special: false, parse_special: true };
        let is_harmless =
            |text: &&String| tokenizer.encode(text, parse).unwrap().iter().all(|&id| !tokenizer.is_special(id));
        let texts: Vec<&String> = corpus.iter().filter(is_harmless).collect();
        for (i, (name, request)) in requests.filter(|(_, request)| !request.to_string().contains("<|")).enumerate() {
            let mut messages = request["messages"].as_array().unwrap().clone();
            if let Some(last) = messages.last_mut().filter(|last| last["role"] == "user") {
                last["content"] =
                    texts.iter().skip(i).step_by(20).map(|text| text.as_str()).collect::<Vec<_>>().join(" ").into();
            }
            let messages: Vec<Value> = messages
                .into_iter()
                .filter(|message| message["tool_calls"].is_null() && message["role"] != "tool")
                .collect();
            let request = ChatRequest { messages: &messages, add_generation_prompt: true, ..ChatRequest::default() };
            let Ok(rendered) = template.render(&request) else { continue };
            let expected = tokenizer.encode(&rendered, parse).unwrap();
            let asked = Chat { ending: Ending::Answer, ..chat(&messages) };
            let prompt = dialect.prompt(&template, &tokenizer, &asked).unwrap();
            assert_eq!(prompt.text, rendered, "{} {name}", dialect.name());
            assert!(prompt.tokens(&tokenizer).unwrap() == expected, "{} {name}", dialect.name());
        }
    }
}

/// The control tokens of a conversation in which this text is said by everybody, and is a tool's everything.
fn controls(family: &(ChatTemplate, std::sync::Arc<Dialect>, Tokenizer), said: &str) -> Vec<u32> {
    let (template, dialect, tokenizer) = family;
    let call = json!({"id": "call12345", "type": "function", "function": {"name": "add", "arguments": json!({said: said}).to_string()}});
    let messages = [
        json!({"role": "system", "content": said}),
        json!({"role": "user", "content": said}),
        json!({"role": "assistant", "content": said}),
        json!({"role": "user", "content": said}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "call12345", "name": "add", "content": said}),
    ];
    let tools = [json!({"type": "function", "function": {
        "name": "add", "description": said, "parameters": {"type": "object", "properties": {said: {"type": "string", "description": said}}},
    }})];
    let chat = Chat { tools: &tools, ..chat(&messages) };
    let tokens = dialect.prompt(template, tokenizer, &chat).unwrap().tokens(tokenizer).unwrap();
    let is_control = |id: &u32| tokenizer.is_special(*id) || tokenizer.end_of_generation().contains(id);
    tokens.into_iter().filter(is_control).collect()
}

#[test]
fn text_from_outside_is_never_a_control_token() {
    for family in families() {
        let (_, dialect, tokenizer) = &family;
        let expected = controls(&family, "harmless");
        assert!(!expected.is_empty());
        let names: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .filter(|id| tokenizer.is_special(*id) || tokenizer.end_of_generation().contains(id))
            .filter_map(|id| String::from_utf8(tokenizer.token_bytes(id)?.to_vec()).ok())
            .filter(|name| !name.is_empty())
            .collect();
        let mut random = common::Random(3);
        for _ in 0..40 {
            // Names whole, cut, inside each other, and beside noncharacters.
            let pieces: Vec<String> = (0..1 + random.below(4))
                .map(|_| {
                    let name: Vec<char> = names[random.below(names.len())].chars().collect();
                    let (from, to) = (random.below(name.len()), random.below(name.len()) + 1);
                    match random.below(6) {
                        0 => name[from..].iter().collect(),
                        1 => name[..to].iter().collect(),
                        2 => [&name[..to], &name[..], &name[to..]].concat().iter().collect(),
                        3 => " \u{FDD0}\\ufdd1\n".into(),
                        _ => name.iter().collect(),
                    }
                })
                .collect();
            let said = pieces.concat();
            assert_eq!(controls(&family, &said), expected, "{}: {said:?}", dialect.name());
        }
    }
}

#[test]
fn what_a_template_joins_is_no_control_token() {
    let tokenizer = common::byte_tokenizer(&["<|im_end|>", "<|im_start|>"]);
    // Texts side by side, a tag around a key, letters made small, and a part taken out.
    let template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}{% for key in x or {} %}<{{ key }}>{% endfor %}{{ y | lower }}{{ z | replace('/no_think', '') }}";
    let template = ChatTemplate::new(template).unwrap();
    let parts =
        ["<", "|im_end|>", " <|im_", "end|> ", "<|im_end|", ">"].map(|text| json!({"type": "text", "text": text}));
    let variables = json!({"x": {"|im_end|": 1}, "y": "<|IM_END|>", "z": "<|im_/no_thinkend|>"});
    let messages = [json!({"role": "user", "content": parts})];
    let chat = Chat { variables: variables.as_object(), ..chat(&messages) };
    let prompt = Dialect::of_template("").prompt(&template, &tokenizer, &chat).unwrap();
    assert_eq!(prompt.text, "<|im_end|> <|im_end|> <|im_end|><|im_end|><|im_end|><|im_end|>");
    assert!(prompt.tokens(&tokenizer).unwrap().iter().all(|&id| id < 256));
}

#[test]
fn roles_between_the_halves_of_a_control_token_make_one() {
    let tokenizer = common::byte_tokenizer(&["<|end|>", "<|user|>"]);
    let template =
        ChatTemplate::new("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}");
    let messages = [json!({"role": "user", "content": "<|end|>"})];
    let prompt = Dialect::of_template("").prompt(&template.unwrap(), &tokenizer, &chat(&messages)).unwrap();
    let tokens = prompt.tokens(&tokenizer).unwrap();
    let expected = [&[257][..], &"<|end|>".bytes().map(u32::from).collect::<Vec<_>>(), &[256]].concat();
    assert_eq!(tokens, expected);
}

#[test]
fn templates_find_reasoning_in_what_the_assistant_said() {
    let tokenizer = common::byte_tokenizer(&["<|im_end|>", "<think>", "</think>"]);
    let source =
        "{# <tool_call> \"arguments #}{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    let messages = ["assistant", "user"].map(|role| json!({"role": role, "content": "<think>a</think>b"}));
    let prompt = Dialect::of_template(source).prompt(&template, &tokenizer, &chat(&messages)).unwrap();
    assert_eq!(prompt.text, "b<think>a</think>b");
    assert!(prompt.tokens(&tokenizer).unwrap().iter().all(|&id| id < 256));
}

#[test]
fn conversations_that_templates_refuse_are_told_in_another_way() {
    let system_first = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let no_system = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let deaf = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let (a, b) = (say("system", "A"), say("system", "B"));
    let cases = [
        (system_first, json!([a, b, say("user", "x")]), "[system]A\n\nB[user]x"),
        (system_first, json!([a, say("user", "x"), b, say("user", "y")]), "[system]A[user]x\n\nB\n\ny"),
        (system_first, json!([say("user", "x"), say("assistant", "y"), b]), "[user]x[assistant]y[user]B"),
        (no_system, json!([a, say("user", "x")]), "[user]A\n\nx"),
        (no_system, json!([say("user", "x"), say("user", "y")]), "[user]x\n\ny"),
        (no_system, json!([say("assistant", "x"), say("user", "y")]), "[user][assistant]x[user]y"),
        (deaf, json!([a, say("user", "x")]), "[user]A\n\nx"),
        // Where a template takes them as they are, they stay so.
        (
            CHATML,
            json!([say("user", "x"), say("user", "y"), b]),
            "<|im_start|>user\nx<|im_end|>\n<|im_start|>user\ny<|im_end|>\n<|im_start|>system\nB<|im_end|>\n<|im_start|>assistant\n",
        ),
    ];
    for (template, messages, expected) in cases {
        assert_eq!(text(template, messages), expected);
    }
}

#[test]
fn several_calls_are_cut_where_a_template_takes_one() {
    let one = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}{{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}";
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "tool_calls": [call("1", "{}"), call("2", "{\"a\": 1}")]},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
    ]);
    assert_eq!(text(one, messages), "[user]x[assistant]yf{}[tool]one[assistant]f{\"a\": 1}[tool]two");
}

#[test]
fn broken_calls_stay_in_the_conversation() {
    let object = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id | length }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}{% endfor %}";
    let json_text = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id | length }}{{ c.function.arguments | tojson }};{% endfor %}{% endfor %}";
    let plain = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id | length }}{{ c.function.arguments }};{% endfor %}{% endfor %}";
    let call = |arguments: Value| json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
    let given = [json!("{\"a\": \"K"), json!("null"), Value::Null, json!("now please"), json!({"b": 1})];
    let calls: Vec<Value> = given.into_iter().map(call).collect();
    // The templates do not write names, by which they would show that they take calls.
    for (template, expected) in [
        (object, "29arguments={\"a\": \"K;2929".to_owned() + "29arguments=now please;29b=1;"),
        (json_text, r#"29"{\"a\": \"K";29{};29{};29"now please";29{"b": 1};"#.into()),
        (plain, "29{\"a\": \"K;29{};29{};29now please;29{\"b\":1};".into()),
    ] {
        let named = template.replace("{{ c.id", "{{ c.function.name }}{{ c.id");
        let written =
            text(&named, json!([{"role": "user", "content": ""}, {"role": "assistant", "tool_calls": calls}]));
        assert_eq!(written.replace('f', ""), expected);
    }
}

#[test]
fn an_answer_is_continued() {
    let dots = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if not loop.last %}.{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let hi = say("user", "Hi");
    let start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    for said in ["The sky is", "e", "", "<|im_end|>", "is ", "is\n"] {
        assert_eq!(text(CHATML, json!([hi, say("assistant", said)])), format!("{start}{said}"));
    }
    assert_eq!(text(dots, json!([hi, say("assistant", "The sky is")])), "[user]Hi.[assistant]The sky is");
    let trims = dots.replace("m.content", "m.content | trim");
    assert_eq!(text(&trims, json!([hi, say("assistant", " The sky is ")])), "[user]Hi.[assistant]The sky is");
    // A template that leaves such a message out begins an answer.
    let deaf = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}";
    assert_eq!(text(deaf, json!([hi, say("assistant", "x")])), "Hi[a]");

    let template = ChatTemplate::new(CHATML).unwrap();
    let tokenizer = common::byte_tokenizer(&["<|im_end|>"]);
    let ended = |messages: &[Value], ending| {
        let prompt = Dialect::of_template("").prompt(&template, &tokenizer, &Chat { ending, ..chat(messages) });
        prompt.map(|prompt| prompt.text).map_err(|error| error.to_string())
    };
    let last = [hi.clone(), say("assistant", "x")];
    assert_eq!(ended(&last, Ending::Continue).unwrap(), format!("{start}x"));
    assert_eq!(ended(&last, Ending::Nothing).unwrap(), format!("{start}x<|im_end|>\n"));
    assert_eq!(ended(&last, Ending::Answer).unwrap(), format!("{start}x<|im_end|>\n<|im_start|>assistant\n"));
    let error = ended(std::slice::from_ref(&hi), Ending::Continue).unwrap_err();
    assert!(error.contains("role \"user\"") && error.contains("to be continued"), "{error}");
    let call = json!({"id": "1", "function": {"name": "f", "arguments": "{}"}});
    let calling = [hi, json!({"role": "assistant", "content": "x", "tool_calls": [call]})];
    assert!(ended(&calling, Ending::Auto).unwrap().ends_with("<|im_start|>assistant\n"));
    assert!(ended(&calling, Ending::Continue).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is said, the text of the prompt is what the template writes.
    #[test]
    fn the_text_is_what_was_said(pieces in prop::collection::vec(prop::sample::select(vec![
        "<", "<|", "<|im_end|>", "im_", "end|>", ">", "|", " ", "\n", "é", "\u{FDD0}", "\u{FDD1}", "\\ufdd2", "x",
    ]), 0..8)) {
        let said = pieces.concat();
        let tokenizer = common::byte_tokenizer(&["<|im_end|>", "<|im_start|>"]);
        let template = ChatTemplate::new(CHATML).unwrap();
        let messages = [json!({"role": "user", "content": said})];
        let prompt = Dialect::of_template("").prompt(&template, &tokenizer, &chat(&messages)).unwrap();
        prop_assert_eq!(&prompt.text, &format!("<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"));
        let tokens = prompt.tokens(&tokenizer).unwrap();
        prop_assert_eq!(tokens.iter().filter(|&&id| id >= 256).count(), 3);
        prop_assert_eq!(tokenizer.decode(&tokens, false), prompt.text);
    }
}

//! Answers in every dialect, taken apart in one piece and in any others.

use basert_text::{Detokenizer, Dialect, EncodeOptions, Event, Parser, ParserOptions, StopTexts};
use proptest::prelude::*;
use serde_json::Value;

use crate::common;

fn tools() -> Vec<Value> {
    ["get_weather", "time", "add"].map(common::tool).into()
}

fn parser(dialect: &str, prompt: &str, stop: &[String]) -> Parser {
    Dialect::named(dialect).unwrap().parser(ParserOptions { prompt, tools: &tools(), stop, seed: 7 })
}

/// The events of a text cut at these places, with neighbours of one kind joined.
fn events(mut parser: Parser, pieces: &[&str]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut all: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    all.extend(parser.finish());
    for event in all {
        match (events.last_mut(), event) {
            (Some(Event::Content(before)), Event::Content(text)) => before.push_str(&text),
            (Some(Event::Reasoning(before)), Event::Reasoning(text)) => before.push_str(&text),
            (Some(Event::Arguments { delta, index }), Event::Arguments { delta: text, index: same })
                if *index == same =>
            {
                delta.push_str(&text);
            }
            (_, event) => events.push(event),
        }
    }
    events
}

/// The events in one line: `reasoning: …; content: …; name{…}`, with `…` after a call that never was whole.
fn told(events: &[Event]) -> String {
    let mut parts: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::Content(text) => parts.push(format!("content: {text}")),
            Event::Reasoning(text) => parts.push(format!("reasoning: {text}")),
            Event::CallBegan { name, .. } => parts.push(name.clone()),
            Event::Arguments { delta, .. } => parts.last_mut().unwrap().push_str(delta),
            Event::CallEnded { .. } => parts.last_mut().unwrap().push('.'),
            Event::CallBroken { .. } => parts.last_mut().unwrap().push_str("BROKEN"),
        }
    }
    parts.join(" | ")
}

fn read(dialect: &str, text: &str) -> String {
    told(&events(parser(dialect, "", &[]), &[text]))
}

/// Dialect, answer, and what is in it.
const ANSWERS: &[(&str, &str, &str)] = &[
    ("hermes", "Hello.\n", "content: Hello.\n"),
    ("hermes", "<think>\nHm.\n\nYes.\n</think>\n\nHello.", "reasoning: Hm.\n\nYes. | content: Hello."),
    ("hermes", "<think>\n\n</think>\n\nHello.", "content: Hello."),
    ("hermes", "<think>never closed", "reasoning: never closed"),
    ("hermes", "Not <think>here</think>.", "content: Not <think>here</think>."),
    ("hermes", "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>", "time{}."),
    (
        "hermes",
        "<think>a</think>I look.\n<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": \"é\"}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"a\": [1, -2.5e3, null]}, \"name\": \"add\"}\n</tool_call>\n",
        "reasoning: a | content: I look. | time{\"zone\": \"é\"}. | add{\"a\": [1, -2.5e3, null]}.",
    ),
    ("hermes", "<tool_call>{\"name\":\"add\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>", "add{\"a\": 1}."),
    ("hermes", "<tool_call>{\"name\":\"add\",\"arguments\":null,\"extra\":[{}]}</tool_call>", "add{}."),
    ("hermes", "<tool_call>{\"name\":\"add\"}</tool_call> Done.", "add{}. | content:  Done."),
    (
        "hermes",
        "<tool_call>[{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"time\", \"arguments\": {}}]</tool_call>",
        "add{}. | time{}.",
    ),
    // A line feed in a string is no JSON, and clear enough.
    (
        "hermes",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"x\ny\"}}</tool_call>",
        "add{\"a\": \"x\\ny\"}.",
    ),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {}}", "add{}."),
    // Brackets that a model forgot are added.
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {}", "add{}."),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1", "add{\"a\": 1}."),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": [1]\n</tool_call>", "add{\"a\": [1]\n}."),
    (
        "hermes",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": {}}\n</tool_call> x",
        "add{\"a\": {}}. | content:  x",
    ),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"1", "add{\"a\": \"1BROKEN"),
    // Several calls in one pair of tags, and tags that come twice.
    (
        "hermes",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>",
        "add{}. | time{}.",
    ),
    ("hermes", "<tool_call>\n<tool_call>\n{\"name\": \"add\"}</tool_call></tool_call>\nx", "add{}. | content: x"),
    // Without tags, where it names a tool.
    ("hermes", "{\"name\": \"add\", \"arguments\": {}}", "add{}."),
    ("hermes", "{\"name\": \"sub\", \"arguments\": {}}", "content: {\"name\": \"sub\", \"arguments\": {}}"),
    ("hermes", "I add.\n```json\n{\"name\": \"add\", \"arguments\": {}}\n```", "content: I add. | add{}."),
    ("hermes", "```\n{\"name\": \"add\", \"arguments\": {}}\n```", "add{}."),
    ("hermes", "```python\nadd()\n```", "content: ```python\nadd()\n```"),
    // A call in a thought is one if the thought never ends.
    ("hermes", "<think>Hm.\n<tool_call>{\"name\": \"add\"}</tool_call>", "reasoning: Hm. | add{}."),
    (
        "hermes",
        "<think>Hm.\n<tool_call>{\"name\": \"add\"}</tool_call></think>No.",
        "reasoning: Hm.\n<tool_call>{\"name\": \"add\"}</tool_call> | content: No.",
    ),
    ("hermes", "<think>a <tool_call> is", "reasoning: a  | content: <tool_call> is"),
    ("llama3", "Sure:\n{\"name\": \"add\", \"parameters\": {}}", "content: Sure:\n | add{}."),
    (
        "deepseek-plain",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "add{\"a\": 1}.",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "add{}.",
    ),
    (
        "tool-list",
        "<|tool_call|>[{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"time\", \"arguments\": {}}]",
        "add{}. | time{}.",
    ),
    ("harmony", "<|channel|>commentary to=assistant<|message|>Hello", "content: Hello"),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>Hello", "content: Hello"),
    // Arguments that are no JSON: by the schema.
    (
        "qwen-coder",
        "I call.\n<tool_call>\n<function=add>\n<parameter=zone>\nKöln\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>",
        "content: I call. | add{\"zone\": \"Köln\", \"n\": 3}.",
    ),
    (
        "qwen-coder",
        "<function=add>\n<parameter=n>\n3.0\n</parameter>\n<parameter=on>\nTrue\n</parameter>\n<parameter=list>\n[1, {}]\n</parameter>\n</function>\n</tool_call>",
        "add{\"n\": 3, \"on\": true, \"list\": [1, {}]}.",
    ),
    (
        "qwen-coder",
        "<function=add><parameter=zone>\n\n <p>\\\"1\" < 2</parameter>\n\n</parameter><parameter=perhaps>null</parameter><parameter=any>x</parameter></function>",
        "add{\"zone\": \"\\n <p>\\\\\\\"1\\\" < 2</parameter>\\n\", \"perhaps\": null, \"any\": \"x\"}.",
    ),
    ("qwen-coder", "<function=add><parameter=n>\nmany\n</parameter></function>", "add{\"n\": \"many\"}."),
    (
        "qwen-coder",
        "<tool_call><function=time>\n</function></tool_call><tool_call>\n<function=add></function></tool_call>",
        "time{}. | add{}.",
    ),
    ("qwen-coder", "<tool_call><function=time></function><function=add></function></tool_call>", "time{}. | add{}."),
    ("qwen-coder", "<tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>", "add{}."),
    ("qwen-coder", "<function=add>\n<parameter=zone>\nx\n</parameter>\n", "add{\"zone\": \"x\"}."),
    ("qwen-coder", "<function=add>\n<parameter=zone>\nx", "add{\"zone\": \"xBROKEN"),
    ("qwen-coder", "a <function=b c>", "content: a <function=b c>"),
    (
        "seed",
        "<seed:think>Hm.</seed:think><seed:tool_call>\n<function=add>\n<parameter=zone>x</parameter>\n</function>\n</seed:tool_call>",
        "reasoning: Hm. | add{\"zone\": \"x\"}.",
    ),
    (
        "glm",
        "<tool_call>add\n<arg_key>zone</arg_key>\n<arg_value>\nx</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>",
        "add{\"zone\": \"\\nx\", \"n\": 3}. | time{}.",
    ),
    ("glm", "<tool_call>time</tool_call>", "time{}."),
    ("glm", "<tool_call> is a tag", "content: <tool_call> is a tag"),
    (
        "minimax",
        "<minimax:tool_call>\n<invoke name=\"add\">\n<parameter name=\"n\">3</parameter>\n</invoke>\n<invoke name=\"time\">\n</invoke>\n</minimax:tool_call>",
        "add{\"n\": 3}. | time{}.",
    ),
    ("hermes", "<tool_call>{\"name\": \"ad", "content: <tool_call>{\"name\": \"ad"),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1]}", "add{\"a\": 1BROKEN | content: ]}"),
    ("hermes", "a <tool_cal", "content: a <tool_cal"),
    ("hermes", "a <tool_call> b", "content: a <tool_call> b"),
    ("hermes", "<tool_call><tool_call>{\"name\": \"add\"}</tool_call>", "add{}."),
    ("hermes", "<tool_call>[1]</tool_call>", "content: <tool_call>[1]</tool_call>"),
    (
        "hermes",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "content: <tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
    ),
    (
        "hermes",
        "<tool_call>{\"name\": \"a\", \"arguments\": [1]}",
        "content: <tool_call>{\"name\": \"a\", \"arguments\": [1]}",
    ),
    ("hermes", "x<\u{301}tool_call>", "content: x<\u{301}tool_call>"),
    ("llama3", "{\"name\": \"add\", \"parameters\": {\"a\": 1}}", "add{\"a\": 1}."),
    (
        "llama3",
        "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"time\", \"parameters\": {}}",
        "add{}. | time{}.",
    ),
    ("llama3", "{\"type\": \"function\", \"name\": \"add\", \"parameters\": {}}", "add{}."),
    ("llama3", "<function=add>{\"a\": 1}</function>", "add{\"a\": 1}."),
    ("llama3", "<function=add{\"a\": 1}</function>", "add{\"a\": 1}."),
    ("mistral", "[TOOL_CALLS]add{\"a\": 1}", "add{\"a\": 1}."),
    (
        "hermes",
        "{\"type\": \"function\", \"function\": {\"name\": \"add\", \"arguments\": {\"a\": 1}}}",
        "add{\"a\":1}.",
    ),
    ("hermes", "<tool_call>{\"function\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>", "add{\"a\": 1}."),
    ("hermes", "{\"function\": {\"name\": \"sub\"}}", "content: {\"function\": {\"name\": \"sub\"}}"),
    // Answers that are JSON themselves.
    ("llama3", "{\"name\": \"Ada\", \"parameters\": {}}", "content: {\"name\": \"Ada\", \"parameters\": {}}"),
    ("llama3", "{\"name\": \"add\"}", "content: {\"name\": \"add\"}"),
    (
        "llama3",
        "{\"city\": \"Köln\"} and {\"name\": \"add\", \"parameters\": {}}",
        "content: {\"city\": \"Köln\"} and {\"name\": \"add\", \"parameters\": {}}",
    ),
    ("llama3", "<|python_tag|>print(1)", "content: <|python_tag|>print(1)"),
    (
        "mistral",
        "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abc123XYZ\"}]",
        "add{\"a\": 1}.",
    ),
    (
        "mistral",
        "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"time\", \"arguments\": {}}]",
        "add{}. | time{}.",
    ),
    (
        "mistral",
        "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"ti",
        "add{}. | content: , {\"name\": \"ti",
    ),
    (
        "mistral",
        "[THINK]Hm.[/THINK]Ok.[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]time[CALL_ID]abcdefghi[ARGS]{}",
        "reasoning: Hm. | content: Ok. | add{\"a\": 1}. | time{}.",
    ),
    ("mistral", "[TOOL_CALLS]add me[ARGS]{}", "content: [TOOL_CALLS]add me[ARGS]{}"),
    (
        "gemma",
        "Sure.\n```tool_code\n{\"name\": \"add\", \"parameters\": {\"a\": 1}}\n```",
        "content: Sure. | add{\"a\": 1}.",
    ),
    ("gemma", "```json\n{\"name\": \"add\", \"arguments\": {}}\n```\nDone", "add{}. | content: Done"),
    ("gemma", "```json\n{\"a\": 1}\n```", "content: ```json\n{\"a\": 1}\n```"),
    ("gemma", "```tool_code\nprint(1)\n```", "content: ```tool_code\nprint(1)\n```"),
    (
        "deepseek",
        "<think>x</think>Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "reasoning: x | content: Ok | add{\"a\": 1}. | time{}.",
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>",
        "reasoning: Hm. | content: Hello.",
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>Yes.<|end|>",
        "reasoning: Hm.\nYes.",
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": 1}<|call|>",
        "content: I look. | add{\"a\": 1}.",
    ),
    ("harmony", "<|start|>assistant to=functions.time<|channel|>commentary json<|message|>{}", "time{}."),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>{\"a\": ", "add{\"a\": BROKEN"),
    ("harmony", "Hello.", "content: Hello."),
    ("generic", "{\"name\": \"add\", \"arguments\": {\"a\": 1}}", "add{\"a\": 1}."),
    ("generic", "[{\"name\": \"add\", \"arguments\": {\"a\": 1}}]", "add{\"a\": 1}."),
    ("generic", "[1, 2]", "content: [1, 2]"),
    ("generic", "Ok:\n```json\n{\"name\": \"add\", \"arguments\": {}}\n```", "content: Ok: | add{}."),
    // A comma before a closing bracket.
    (
        "hermes",
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1,}}\n</tool_call>\nDone.",
        "add{\"a\": 1}. | content: Done.",
    ),
    (
        "hermes",
        "<tool_call>[{\"name\": \"add\", \"arguments\": {\"a\": [1, 2, ],\n},},]</tool_call>x",
        "add{\"a\": [1, 2]}. | content: x",
    ),
    ("hermes", "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1,", "add{\"a\": 1}."),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>{\"a\": 1,}<|call|>", "add{\"a\": 1}."),
    ("deepseek-plain", "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1, }<｜tool▁call▁end｜>", "add{\"a\": 1}."),
    // What follows in a broken call is no content.
    (
        "hermes",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1 2}}</tool_call>\nDone.",
        "add{\"a\": 1 BROKEN | content: Done.",
    ),
    (
        "hermes",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": ]}} <tool_call>{\"name\": \"time\"}</tool_call>",
        "add{\"a\": BROKEN | time{}.",
    ),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>{\"a\" 1}<|call|>", "add{\"a\" BROKEN"),
    // Python's strings and words.
    (
        "hermes",
        "<tool_call>{'name': 'add', 'arguments': {'a': 'it\\'s \"so\"', 'on': True, 'b': None}}</tool_call>",
        "add{\"a\": \"it's \\\"so\\\"\", \"on\": true, \"b\": null}.",
    ),
    ("generic", "{'name': 'add', 'arguments': {'a': 1}}", "add{\"a\": 1}."),
    ("generic", "{'name': 'Ada'}", "content: {'name': 'Ada'}"),
    // A pattern, with escapes that JSON does not have.
    (
        "hermes",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"\\d+\\.\"}}</tool_call>",
        "add{\"a\": \"\\\\d+\\\\.\"}.",
    ),
    // As APIs wrap calls.
    (
        "hermes",
        "{\"tool_calls\": [{\"name\": \"add\", \"arguments\": {\"a\": 1}}, {\"type\": \"function\", \"function\": {\"name\": \"time\", \"arguments\": {}}}]}",
        "add{\"a\": 1}. | time{}.",
    ),
    (
        "hermes",
        "<tool_call>{\"tool_calls\": [{\"name\": \"add\", \"arguments\": {}}]}</tool_call> Done.",
        "add{}. | content:  Done.",
    ),
    ("generic", "{\"tool_calls\": [{\"name\": \"sub\"}]}", "content: {\"tool_calls\": [{\"name\": \"sub\"}]}"),
    ("generic", "{\"tool_calls\": []}", "content: {\"tool_calls\": []}"),
    // A list as the whole answer.
    (
        "llama3",
        "[{\"name\": \"add\", \"parameters\": {}}, {\"name\": \"time\", \"parameters\": {\"zone\": \"x\"}}]",
        "add{}. | time{\"zone\": \"x\"}.",
    ),
    ("llama3", "[{\"name\": \"add\", \"parameters\": {}}]\nDone.", "add{}. | content: Done."),
    ("llama3", "[add(a=1)]", "add{\"a\": 1}."),
    ("llama3", "[addition]", "content: [addition]"),
    ("llama3", "[add(ing) to it]", "content: [add(ing) to it]"),
    // Python calls.
    (
        "lfm2",
        "I look.<|tool_call_start|>[get_weather(city=\"Paris\", n=3), add(x=[1, (2, 'a')], y={'k': None})]<|tool_call_end|>Ok.",
        "content: I look. | get_weather{\"city\": \"Paris\", \"n\": 3}. | add{\"x\": [1, [2, \"a\"]], \"y\": {\"k\": null}}. | content: Ok.",
    ),
    (
        "lfm2",
        "[get_weather(city='São Paulo, \"SP\"'), time()]",
        "get_weather{\"city\": \"São Paulo, \\\"SP\\\"\"}. | time{}.",
    ),
    ("lfm2", "[sub(x=1)]", "content: [sub(x=1)]"),
    ("lfm2", "<|tool_call_start|>add(a=1)<|tool_call_end|>", "add{\"a\": 1}."),
    ("lfm2", "<|tool_call_start|>[add(a=1<|tool_call_end|>", "add{\"a\": 1}."),
    ("lfm2", "<|tool_call_start|>[add(a=b)]<|tool_call_end|>x", "add{\"a\": BROKEN | content: x"),
    ("lfm2", "<|tool_call_start|>[{\"name\": \"add\", \"arguments\": {}}]<|tool_call_end|>", "add{}."),
    (
        "llama4",
        "[get_weather(city=\"Paris\"), time(zone='x')]",
        "get_weather{\"city\": \"Paris\"}. | time{\"zone\": \"x\"}.",
    ),
    ("llama4", "<|python_start|>[add(a=-1.5e3)]<|python_end|>", "add{\"a\": -1.5e3}."),
    ("llama4", "[1, 2]", "content: [1, 2]"),
    (
        "olmo3",
        "Hm.\n<function_calls>get_weather(city=\"Paris\")\nadd(a=1,\n b=[True])\n</function_calls>",
        "content: Hm.\n | get_weather{\"city\": \"Paris\"}. | add{\"a\": 1,\n \"b\": [true]}.",
    ),
    ("gemma", "```tool_code\n[add(a=1)]\n```", "add{\"a\": 1}."),
    // Gemma 4's.
    (
        "gemma4",
        "<|channel>thought\nHm.<channel|><|tool_call>call:add{zone:<|\"|>a \"b\"\\<|\"|>,n:3,o:{a:[1,true,None,<|\"|>x<|\"|>]}}<tool_call|><|tool_call>call:time{}<tool_call|>",
        "reasoning: Hm. | add{\"zone\": \"a \\\"b\\\"\\\\\",\"n\": 3,\"o\": {\"a\":[1,true,null,\"x\"]}}. | time{}.",
    ),
    ("gemma4", "<|tool_call>call:add{n:3<tool_call|>", "add{\"n\": 3}."),
    ("gemma4", "<|tool_call>calling", "content: <|tool_call>calling"),
    (
        "function-gemma",
        "<start_function_call>call:add{zone:<escape>x<escape>}<end_function_call>",
        "add{\"zone\": \"x\"}.",
    ),
    // Names that are ids.
    (
        "kimi",
        "<think>Hm.</think>Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "reasoning: Hm. | content: Ok. | add{\"a\": 1}. | time{}.",
    ),
    ("kimi", "<|tool_call_begin|>add<|tool_call_argument_begin|>{}<|tool_call_end|>", "add{}."),
    (
        "cohere",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"add\", \"parameters\": {\"a\": 1}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"time\", \"parameters\": {}}\n]<|END_ACTION|>",
        "reasoning: Hm. | add{\"a\": 1}. | time{}.",
    ),
    (
        "cohere",
        "Action: ```json\n[\n    {\n        \"tool_name\": \"add\",\n        \"parameters\": {\"a\": 1}\n    }\n]```",
        "add{\"a\": 1}.",
    ),
    ("nemotron", "<TOOLCALL>[{\"name\": \"add\", \"arguments\": {\"a\": 1}}]</TOOLCALL>", "add{\"a\": 1}."),
    ("apertus", "<|tools_prefix|>[{\"add\": {\"a\": 1}}, {\"time\": {}}]<|tools_suffix|>", "add{\"a\": 1}. | time{}."),
    ("tool-calls", "<tool_calls>[{\"name\": \"add\", \"arguments\": {}, \"id\": \"1\"}]</tool_calls>", "add{}."),
    (
        "tool-calls",
        "<tool_calls>\n{\"name\": \"add\", \"arguments\": {}}\n{\"name\": \"time\", \"arguments\": {}}\n</tool_calls>",
        "add{}. | time{}.",
    ),
    ("gigachat", "Ok.<|function_call|>{\"name\": \"add\", \"arguments\": {\"a\": 1}}", "content: Ok. | add{\"a\": 1}."),
    (
        "minicpm5",
        "<function name=\"add\"><param name=\"n\">3</param><param name=\"zone\">x</param></function>\n<function name=\"time\"></function>",
        "add{\"n\": 3, \"zone\": \"x\"}. | time{}.",
    ),
    (
        "deepseek-dsml",
        "Ok.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"add\">\n<｜DSML｜parameter name=\"any\" string=\"true\">3</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "content: Ok. | add{\"any\": \"3\", \"n\": 3}. | time{}.",
    ),
    // A fence without a language, and none.
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```\n{\"a\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "add{\"a\": 1}.",
    ),
    (
        "deepseek",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>x",
        "add{\"a\": 1}. | content: x",
    ),
    // The name in a line by itself.
    ("glm4", "get_weather\n{\"city\": \"Paris\"}", "get_weather{\"city\": \"Paris\"}."),
    ("glm4", "time flies\n{}", "content: time flies\n{}"),
    ("glm4", "add {x}", "content: add {x}"),
    // The marker behind a value is missing.
    (
        "qwen-coder",
        "<tool_call>\n<function=add>\n<parameter=zone>\nx < y\n<parameter=n>\n3\n</function>\n</tool_call>\nOk",
        "add{\"zone\": \"x < y\", \"n\": 3}. | content: Ok",
    ),
    ("qwen-coder", "<function=add>\n<parameter=zone>\nx\n</function>\n", "add{\"zone\": \"x\"}."),
    (
        "qwen-coder",
        "<tool_call><function=add>\n<parameter=zone>\na <parameter=other> </function> b\n</parameter>\n</function></tool_call>",
        "add{\"zone\": \"a <parameter=other> </function> b\"}.",
    ),
    (
        "glm",
        "<tool_call>add\n<arg_key>zone</arg_key>\n<arg_value>x\n<arg_key>n</arg_key>\n<arg_value>3</tool_call>",
        "add{\"zone\": \"x\\n\", \"n\": 3}.",
    ),
];

#[test]
fn answers_are_taken_apart() {
    let wrong: Vec<_> = ANSWERS
        .iter()
        .filter_map(|(dialect, text, expected)| {
            let found = read(dialect, text);
            (found != *expected).then(|| format!("{dialect}: {text:?}\n   found {found:?}\nexpected {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_answer_may_be_cut_between_any_two_characters() {
    for (dialect, text, _) in ANSWERS {
        let whole = events(parser(dialect, "", &[]), &[text]);
        for (at, _) in text.char_indices() {
            let (a, b) = text.split_at(at);
            assert_eq!(events(parser(dialect, "", &[]), &[a, b]), whole, "{dialect}: {a:?} | {b:?}");
        }
    }
}

#[test]
fn a_call_is_whole_only_when_its_text_is() {
    for (dialect, text, _) in ANSWERS {
        let ended = |text: &str| {
            let mut parser = parser(dialect, "", &[]);
            let events = [parser.push(text), parser.cut_off()].concat();
            events.iter().filter(|event| matches!(event, Event::CallEnded { .. })).count()
        };
        let mut before = 0;
        for (at, c) in text.char_indices() {
            let now = ended(&text[..at + c.len_utf8()]);
            // A call ends with the brace or tag that closes it, or with the tag that comes in place of a brace.
            assert!(
                now == before || (now == before + 1 && matches!(c, '}' | '>' | '<' | ')')),
                "{dialect}: {}",
                &text[..=at]
            );
            before = now;
        }
    }
}

#[test]
fn the_prompt_may_have_begun_the_reasoning() {
    let read = |dialect, prompt, text| told(&events(parser(dialect, prompt, &[]), &[text]));
    assert_eq!(
        read("hermes", "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes."),
        "reasoning: Hm. | content: Yes."
    );
    assert_eq!(read("hermes", "<think>\n\n</think>\n\n", "Hm.</think>"), "content: Hm.</think>");
    let prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
    assert_eq!(read("harmony", prompt, " to=functions.add<|channel|>commentary<|message|>{}<|call|>"), "add{}.");
    assert_eq!(read("harmony", prompt, "Hello"), "content: Hello");
    let final_message = format!("{prompt}<|channel|>final<|message|>");
    assert_eq!(read("harmony", &final_message, "Hello<|return|>"), "content: Hello");
    let analysis = format!("{prompt}<|channel|>analysis<|message|>So");
    assert_eq!(read("harmony", &analysis, " it is<|end|>"), "reasoning:  it is");
}

#[test]
fn without_tools_nothing_is_a_call() {
    for (dialect, text, _) in ANSWERS {
        let parser = Dialect::named(dialect).unwrap().parser(ParserOptions::default());
        let is_call = |event: &Event| !matches!(event, Event::Content(_) | Event::Reasoning(_));
        assert!(!events(parser, &[text]).iter().any(is_call), "{dialect}: {text}");
    }
}

#[test]
fn stop_texts_end_content_and_not_calls() {
    let stop = ["\n".to_owned(), "END".to_owned()];
    let read = |text: &str| told(&events(parser("hermes", "", &stop), &[text]));
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"END\"}}\n</tool_call>";
    assert_eq!(read(&format!("I add.\n{call}")), "content: I add. | add{\"a\": \"END\"}.");
    assert_eq!(read(&format!("I add.END{call}")), "content: I add.");
    assert_eq!(read(&format!("EN{call}D")), "content: EN | add{\"a\": \"END\"}. | content: D");
    assert_eq!(read("<think>END\n</think>\n\nOne\ntwo"), "reasoning: END | content: One");
    let mut stopped = parser("hermes", "", &stop);
    stopped.push("One");
    assert_eq!(stopped.stopped(), None);
    assert_eq!(stopped.push(" EN"), [Event::Content(" ".into())]);
    stopped.push("D more");
    assert!(stopped.stopped().is_some());
    assert_eq!(stopped.push("even more"), []);
}

#[test]
fn ids_are_the_models_or_made_up() {
    let ids = |dialect: &str, text: &str| -> Vec<String> {
        let ids = events(parser(dialect, "", &[]), &[text]).into_iter();
        ids.filter_map(|event| if let Event::CallBegan { id, .. } = event { Some(id) } else { None }).collect()
    };
    let list = "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {}, \"id\": \"abc123XYZ\"}, {\"name\": \"b\"}]";
    let found = ids("mistral", list);
    assert!(found[0] == "abc123XYZ" && found[1].len() == 9 && found[1].bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_eq!(ids("mistral", "[TOOL_CALLS]a[CALL_ID]xyz[ARGS]{}"), ["xyz"]);
    let call = |head: &str| format!("<|tool_call_begin|>{head}<|tool_call_argument_begin|>{{}}<|tool_call_end|>");
    let calls = [call("functions.a:7"), call("a")].concat();
    assert_eq!(ids("kimi", &calls), ["functions.a:7", "functions.a:1"]);
    let found = ids("hermes", "<tool_call>{\"name\": \"a\"}</tool_call><tool_call>{\"name\": \"a\"}</tool_call>");
    assert!(found[0] != found[1] && found.iter().all(|id| id.starts_with("call_") && id.len() == 29), "{found:?}");
}

#[test]
fn templates_show_their_dialect() {
    let goldens: Value = serde_json::from_str(&common::data("templates.json")).unwrap();
    for (template, dialect) in [
        ("qwen3", "hermes"),
        ("qwen2_5", "hermes"),
        ("llama3", "llama3"),
        ("llama3_1", "llama3"),
        ("llama tools", "llama3"),
        ("mistral tools", "mistral"),
        ("mistral", "generic"),
        ("smollm2", "generic"),
        ("gemma3", "gemma"),
        ("deepseek_v3", "deepseek"),
    ] {
        let source = goldens["templates"][template]["source"].as_str().unwrap();
        assert_eq!(Dialect::of_template(source).name(), dialect, "{template}");
    }
    for (source, dialect) in [
        ("<|start|>{{ x }}<|channel|>final<|message|>", "harmony"),
        ("[gMASK]<sop><|observation|>", "glm4"),
        ("[gMASK]<sop><|observation|><arg_key><arg_value>", "glm"),
        ("<|header_start|>", "llama4"),
        ("<functions></functions> <function_calls>", "olmo3"),
        ("<start_of_turn> <start_function_call>", "function-gemma"),
    ] {
        assert_eq!(Dialect::of_template(source).name(), dialect, "{source}");
    }
}

#[test]
fn markers_that_are_control_tokens_are_shown() {
    for (family, dialect, text, expected) in [
        ("gptoss", "harmony", "<|channel|>commentary to=functions.add<|message|>{\"a\": 1}<|call|>", "add{\"a\": 1}."),
        ("llama3_1", "llama3", "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}<|eot_id|>", "add{}."),
        (
            "qwen3",
            "hermes",
            "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"add\"}\n</tool_call><|im_end|>",
            "reasoning: Hm. | add{}.",
        ),
        (
            "deepseek_v3",
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
            "add{}.",
        ),
    ] {
        let tokenizer = common::from_json(family);
        let ids = tokenizer.encode(text, EncodeOptions { parse_special: true, ..Default::default() }).unwrap();
        let shown = Dialect::named(dialect).unwrap().tokens(&tokenizer);
        let mut detokenizer = Detokenizer::continuing(&tokenizer, true).showing(shown);
        let pieces: Vec<String> = ids
            .into_iter()
            .map(|id| {
                let mut piece = String::new();
                detokenizer.push(id, &mut piece);
                piece
            })
            .collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(told(&events(parser(dialect, "", &[]), &pieces)), expected, "{family}");
    }
}

/// Texts made of what all dialects' answers are made of.
fn mixture() -> impl Strategy<Value = String> {
    let pieces = vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "[",
        "]",
        "{",
        "}",
        "{\"name\": \"add\", \"arguments\": {\"a\": 1}}",
        "{\"name\": \"add\", \"parameters\": {}}",
        "\"name\"",
        "\"arguments\"",
        "\"",
        ":",
        ",",
        "add",
        "time",
        "```json\n",
        "```tool_code\n",
        "```",
        "<|python_tag|>",
        "<function=",
        ">",
        "</function>",
        "; ",
        "\n",
        " ",
        "é",
        "🌧",
        "\\",
        "\\u00e9",
        "1",
        "null",
        "END",
        "EN",
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
        "analysis",
        "final",
        "commentary to=functions.add ",
        "<|constrain|>json",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "\n```json\n",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "[add(",
        "add(",
        "n=",
        ")",
        "'",
        "'x'",
        "<function_calls>",
        "</function_calls>",
        "<|tool_call>call:add{",
        "<|\"|>",
        "n:",
        "<tool_call|>",
        "<|channel>thought\n",
        "<channel|>",
        "<|tool_call_begin|>functions.add:0",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|START_ACTION|>[",
        "<|END_ACTION|>",
        "{\"tool_name\": \"add\", \"parameters\": {",
        "<TOOLCALL>[",
        "</TOOLCALL>",
        "<|tools_prefix|>[{\"add\": ",
        "{\"tool_calls\": [",
        "<tool_call><function=add>",
        "<parameter=zone>",
        "<parameter=n>",
        "</parameter>",
        "<arg_key>n</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<｜DSML｜tool_calls><｜DSML｜invoke name=\"add\">",
        "<｜DSML｜parameter name=\"n\" string=\"false\">",
        "</｜DSML｜parameter>",
    ];
    prop::collection::vec(
        prop_oneof![9 => prop::sample::select(pieces).prop_map(str::to_owned), 1 => any::<String>()],
        0..24,
    )
    .prop_map(|pieces| pieces.concat())
}

/// Found by fuzzing: in harmony there may be text before the first message.
#[test]
fn what_is_said_before_reasoning_comes_before_it() {
    let text = "Hm.<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>4";
    let whole = events(parser("harmony", "", &[]), &[text]);
    assert_eq!(told(&whole), "content: Hm. | reasoning: 2+2 | content: \n4");
    let (first, rest) = text.split_at(5);
    assert_eq!(events(parser("harmony", "", &[]), &[first, rest]), whole);
    let stopped = events(parser("harmony", "", &["Hm".to_owned()]), &[text]);
    assert_eq!(told(&stopped), "");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_cut_gives_the_same_events(
        text in mixture(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8), open in any::<bool>(), stops in any::<bool>(),
    ) {
        let stop = if stops { vec!["END".to_owned(), "é".to_owned()] } else { vec![] };
        let mut places: Vec<usize> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
        places.sort_unstable();
        let mut pieces = Vec::new();
        let mut done = 0;
        for place in places {
            pieces.push(&text[done..place]);
            done = place;
        }
        pieces.push(&text[done..]);
        for dialect in Dialect::names() {
            let prompt = if open { "<|start|>assistant\n<think>\n" } else { "" };
            let whole = events(parser(dialect, prompt, &stop), &[&text]);
            prop_assert_eq!(&events(parser(dialect, prompt, &stop), &pieces), &whole, "{}", dialect);

            // Calls are numbered, end once, and are JSON when they end.
            let (mut calls, mut arguments, mut is_open) = (0, String::new(), false);
            for event in whole {
                match event {
                    Event::CallBegan { index, .. } => {
                        prop_assert!(index == calls && !is_open);
                        (calls, is_open) = (calls + 1, true);
                        arguments.clear();
                    }
                    Event::Arguments { index, delta } => {
                        prop_assert!(is_open && index + 1 == calls);
                        arguments.push_str(&delta);
                    }
                    Event::CallEnded { index } => {
                        prop_assert!(is_open && index + 1 == calls);
                        is_open = false;
                        prop_assert!(matches!(serde_json::from_str(&arguments), Ok(Value::Object(_))), "{}", arguments);
                    }
                    Event::CallBroken { .. } => is_open = false,
                    Event::Content(_) | Event::Reasoning(_) => prop_assert!(!is_open),
                }
            }
            prop_assert!(!is_open);
        }
    }

    #[test]
    fn stop_texts_do_not_depend_on_cuts(pieces in prop::collection::vec("[abc]{0,3}", 0..8), stops in prop::collection::vec("[abc]{0,3}", 0..3)) {
        let run = |pieces: &[String]| {
            let (mut stop, mut out) = (StopTexts::new(&stops), String::new());
            pieces.iter().for_each(|piece| stop.push(piece, &mut out));
            stop.flush(&mut out);
            (out, stop.came().is_some())
        };
        let (out, stopped) = run(&pieces);
        prop_assert_eq!(run(&[pieces.concat()]), (out.clone(), stopped));
        let text = pieces.concat();
        prop_assert!(text.starts_with(&out));
        prop_assert_eq!(stopped, stops.iter().any(|stop| !stop.is_empty() && text.contains(stop)));
        prop_assert!(stopped || out == text);
    }
}

//! OpenAI's responses, some of which are kept.

use serde_json::{Value, json};

use crate::openai::with;
use crate::server::Running;

const RESPONSES: &str = "/v1/responses";

fn response(input: Value) -> Value {
    json!({ "input": input, "max_output_tokens": 6, "temperature": 0, "ignore_eos": true })
}

#[test]
fn responses_go_on_from_those_before() {
    let server = Running::start("responses");
    let first = server.ask(RESPONSES, &with(response(json!("One.")), json!({ "metadata": { "a": "b" } })));
    assert_eq!((&first["object"], &first["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(first["metadata"], json!({ "a": "b" }));
    let said = first["output"][0]["content"][0]["text"].as_str().unwrap();
    let id = first["id"].as_str().unwrap();
    let second = server.ask(RESPONSES, &with(response(json!("Two.")), json!({ "previous_response_id": id })));
    let spelled = json!([
        { "role": "user", "content": "One." },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": said }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "Two." }] },
    ]);
    let whole = server.ask(RESPONSES, &response(spelled));
    assert_eq!(second["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(second["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    let path = format!("{RESPONSES}/{id}");
    assert_eq!(server.get(&path).send().unwrap().text().unwrap(), first.to_string());
    let unkept = server.ask(RESPONSES, &with(response(json!("One.")), json!({ "store": false })));
    let unkept = format!("{RESPONSES}/{}", unkept["id"].as_str().unwrap());
    assert_eq!(server.get(&unkept).send().unwrap().status(), 404);
    let gone = with(response(json!("x")), json!({ "previous_response_id": "resp_0" }));
    assert_eq!(server.refused(RESPONSES, &gone).0, 404);
    let (status, refused) = server.refused(RESPONSES, &with(response(json!("x")), json!({ "truncation": "middle" })));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("truncation")));
}

#[test]
fn events_of_responses_build_the_response() {
    let server = Running::start("response events");
    let whole = server.ask(RESPONSES, &response(json!("One.")));
    let events = server.stream(RESPONSES, &with(response(json!("One.")), json!({ "stream": true })));
    let data: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert!(data.iter().enumerate().all(|(i, data)| data["sequence_number"] == i));
    assert!(events.iter().zip(&data).all(|((name, _), data)| data["type"] == name.as_deref().unwrap()));
    let frame: Vec<&str> = data
        .iter()
        .map(|data| data["type"].as_str().unwrap().trim_start_matches("response."))
        .filter(|kind| *kind != "output_text.delta")
        .collect();
    assert_eq!(
        frame,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete"
        ]
    );
    let text: String = data.iter().filter_map(|data| data["delta"].as_str()).collect();
    assert_eq!(text, whole["output"][0]["content"][0]["text"]);
    assert_eq!(data[data.len() - 1]["response"]["output"][0]["content"], whole["output"][0]["content"]);
}

/// Agents put functions in namespaces, and declare what the service runs itself.
#[test]
fn functions_in_namespaces_are_called_by_both_names() {
    let server = Running::start("namespaces");
    let function = |name: &str| {
        let parameters = json!({ "type": "object", "properties": { "n": { "type": "integer", "maximum": 9 } },
            "required": ["n"], "additionalProperties": false });
        json!({ "type": "function", "name": name, "description": "", "strict": false, "parameters": parameters })
    };
    let namespace = json!({ "type": "namespace", "name": "crm", "description": "Customers.",
        "tools": [function("find"), with(function("close"), json!({ "defer_loading": true }))] });
    let tools = json!([function("find"), namespace, { "type": "web_search", "external_web_access": false }]);
    let choice = json!({ "type": "function", "namespace": "crm", "name": "close" });
    let body = json!({ "input": "Close it.", "tools": tools, "tool_choice": choice, "max_output_tokens": 200,
        "temperature": 0, "client_metadata": { "a": "b" } });
    let whole = server.ask(RESPONSES, &body);
    let call = &whole["output"][0];
    assert_eq!(
        (&call["type"], &call["namespace"], &call["name"]),
        (&json!("function_call"), &json!("crm"), &json!("close"))
    );
    let listed: Vec<&Value> = whole["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(listed, ["find", "crm"]);
    assert_eq!(whole["tools"][1]["tools"][1]["name"], "close");

    let events = server.stream(RESPONSES, &with(body.clone(), json!({ "stream": true })));
    let named: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let item = named.iter().find(|event| event["type"] == "response.output_item.done").unwrap();
    assert_eq!((&item["item"]["namespace"], &item["item"]["name"]), (&json!("crm"), &json!("close")));
    let done = named.iter().find(|event| event["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!(done["name"], "close");

    // The next turn has the call as it came, or is kept here: the prompt is the same.
    let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "closed" });
    let said = json!({ "role": "user", "content": "Close it." });
    let next = with(body.clone(), json!({ "tool_choice": "none", "max_output_tokens": 4 }));
    let spelled = server.ask(RESPONSES, &with(next.clone(), json!({ "input": [said, call, output] })));
    let kept = json!({ "input": [output], "previous_response_id": whole["id"] });
    let kept = server.ask(RESPONSES, &with(next, kept));
    assert_eq!(spelled["output"][0]["content"], kept["output"][0]["content"]);
    assert_eq!(spelled["usage"]["input_tokens"], kept["usage"]["input_tokens"]);

    let wrong =
        |tools: Value| server.refused(RESPONSES, &with(body.clone(), json!({ "tools": tools, "tool_choice": "auto" })));
    for (tools, place, part) in [
        (json!([{ "type": "hologram" }]), "tools[0].type", "namespaces of functions"),
        (json!([{ "name": "x" }]), "tools[0].type", "needs a type"),
        (json!([{ "type": "function" }]), "tools[0]", "missing field `name`"),
        (json!([{ "type": "namespace", "name": "a", "tools": [{ "type": "mcp" }] }]), "tools[0].tools[0].type", "mcp"),
        (json!([function("a"), with(function("b"), json!({ "colour": 1 }))]), "tools[1].colour", "not supported"),
    ] {
        let (status, refused) = wrong(tools);
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(place)));
        assert!(refused["error"]["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

//! `/docs`: the document of `/openapi.json` as a web page, with a style sheet and without scripts.

use std::fmt::Write;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::openapi;

/// How it looks.
pub const STYLE: &[u8] = include_bytes!("docs.css");

static PAGE: LazyLock<String> = LazyLock::new(|| page(&openapi::document()));

/// The page.
pub fn content() -> &'static [u8] {
    PAGE.as_bytes()
}

fn page(document: &Value) -> String {
    let none = Map::new();
    let entries = |value: &'_ Value| value.as_object().unwrap_or(&none).clone().into_iter().collect::<Vec<_>>();
    let mut endpoints = String::new();
    for (path, methods) in entries(&document["paths"]) {
        for (method, operation) in entries(&methods) {
            endpoints.push_str(&endpoint(&method, &path, &operation));
        }
    }
    let (title, version) = (text(&document["info"]["title"]), text(&document["info"]["version"]));
    let about = text(&document["info"]["description"]);
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: endpoints</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="docs.css">
<main>
<h1>{title} <small>{version}</small></h1>
<p>{about} For programs, this page is <a href="openapi.json">openapi.json</a>.</p>
{endpoints}</main>
</html>
"#
    )
}

/// An endpoint, with a table of the fields of its body if it has any.
fn endpoint(method: &str, path: &str, operation: &Value) -> String {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let (summary, path) = (text(&operation["summary"]), escape(path));
    let head = format!("<b>{}</b> <code>{path}</code> <span>{summary}</span>", escape(&method.to_uppercase()));
    let Some(properties) = schema["properties"].as_object() else { return format!("<p>{head}</p>\n") };
    let mut rows = String::new();
    for (name, property) in properties {
        let required = schema["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name));
        let kind = property["type"].as_str().unwrap_or("any");
        let needed = if required { "required" } else { "" };
        let (name, kind, meaning) = (escape(name), escape(kind), text(&property["description"]));
        // Writing to a string cannot fail.
        let _ = writeln!(rows, "<tr><th>{name}<td>{kind}<td>{needed}<td>{meaning}");
    }
    format!("<details><summary>{head}</summary>\n<table>\n{rows}</table>\n</details>\n")
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

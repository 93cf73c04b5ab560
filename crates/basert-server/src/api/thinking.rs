//! Control of reasoning, in the fields of all APIs that have some for it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::body::Fields;
use crate::error::ApiError;
use crate::fields::Warnings;

/// The fields of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thinking {
    /// Variables that are passed to the template unchanged.
    chat_template_kwargs: Option<Map<String, Value>>,
    enable_thinking: Option<bool>,
    /// As Ollama's API has it.
    think: Option<SwitchOrEffort>,
    /// As Anthropic's API has it.
    thinking: Option<Switch>,
    reasoning_effort: Option<String>,
    /// As OpenAI's responses and OpenRouter have it.
    reasoning: Option<Reasoning>,
    /// Tokens; there is no limit but none at all.
    reasoning_budget: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false or an effort")]
enum SwitchOrEffort {
    Switch(bool),
    Effort(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    #[serde(rename = "type")]
    kind: Kind,
    budget_tokens: Option<i64>,
    #[serde(rename = "display")]
    _display: Option<IgnoredAny>,
    /// Of turns before; the template decides what becomes of them.
    #[serde(rename = "clear_thinking")]
    _clear_thinking: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Enabled,
    Adaptive,
    Auto,
    Disabled,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reasoning {
    effort: Option<String>,
    enabled: Option<bool>,
    max_tokens: Option<i64>,
    #[serde(rename = "exclude")]
    _exclude: Option<super::options::Unwanted>,
    #[serde(rename = "summary")]
    _summary: Option<IgnoredAny>,
    #[serde(rename = "generate_summary")]
    _generate_summary: Option<IgnoredAny>,
    #[serde(rename = "context")]
    _context: Option<IgnoredAny>,
}

impl Thinking {
    /// Takes what there is out of the fields of a request.
    pub fn take(fields: &mut Fields) -> Result<Thinking, ApiError> {
        fields.take(&[])
    }

    /// With an effort that an API has elsewhere.
    pub fn with_effort(self, effort: Option<String>) -> Thinking {
        Thinking { reasoning_effort: effort.or(self.reasoning_effort), ..self }
    }

    /// The variables for the template. Templates use either name for the switch.
    pub fn variables(self, warnings: &Warnings) -> Map<String, Value> {
        let mut variables = self.chat_template_kwargs.unwrap_or_default();
        let told = ["enable_thinking", "thinking"].into_iter().find_map(|name| variables.get(name)?.as_bool());
        let (mut enabled, mut effort) = (told.or(self.enable_thinking), self.reasoning_effort);
        let mut budget = self.reasoning_budget.filter(|&budget| budget >= 0);
        match self.think {
            Some(SwitchOrEffort::Switch(switch)) => enabled = enabled.or(Some(switch)),
            Some(SwitchOrEffort::Effort(word)) => effort = effort.or(Some(word)),
            None => {}
        }
        if let Some(thinking) = self.thinking {
            enabled = enabled.or(Some(thinking.kind != Kind::Disabled));
            budget = budget.or(thinking.budget_tokens.filter(|_| thinking.kind != Kind::Disabled));
        }
        if let Some(reasoning) = self.reasoning {
            enabled = enabled.or(reasoning.enabled);
            effort = effort.or(reasoning.effort);
            budget = budget.or(reasoning.max_tokens);
        }
        match budget {
            Some(0) => enabled = enabled.or(Some(false)),
            Some(_) => warnings.add("the budget of thinking"),
            None => {}
        }
        let effort = match effort.as_deref() {
            Some("none") => {
                enabled = enabled.or(Some(false));
                None
            }
            // Templates know three words.
            Some("minimal") => Some("low".to_owned()),
            Some("xhigh" | "max") => Some("high".to_owned()),
            _ => effort,
        };
        for (name, value) in [
            ("enable_thinking", enabled.map(Value::Bool)),
            ("thinking", enabled.map(Value::Bool)),
            ("reasoning_effort", effort.map(Value::String)),
        ] {
            if let Some(value) = value {
                variables.entry(name).or_insert(value);
            }
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_words_for_it_become_what_templates_know() {
        let (on, off) = (
            json!({ "enable_thinking": true, "thinking": true }),
            json!({ "enable_thinking": false, "thinking": false }),
        );
        let low = json!({ "reasoning_effort": "low" });
        for (fields, expected) in [
            (json!({}), json!({})),
            (json!({ "enable_thinking": false }), off.clone()),
            (json!({ "chat_template_kwargs": { "enable_thinking": false }, "think": true }), off.clone()),
            (json!({ "think": true }), on.clone()),
            (json!({ "think": "low" }), low.clone()),
            (json!({ "thinking": { "type": "disabled", "budget_tokens": 0 } }), off.clone()),
            (json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } }), on.clone()),
            (json!({ "reasoning_effort": "none" }), off.clone()),
            (json!({ "reasoning_effort": "minimal" }), low.clone()),
            (json!({ "reasoning": { "effort": "low", "summary": "auto" } }), low.clone()),
            (json!({ "reasoning": { "enabled": true, "exclude": false } }), on.clone()),
            (json!({ "reasoning": { "max_tokens": 0 } }), off.clone()),
            (json!({ "thinking_budget": 0 }), off.clone()),
            (json!({ "reasoning_budget": -1 }), json!({})),
        ] {
            let mut body = Fields::parse(fields.to_string().as_bytes()).unwrap();
            let variables = Thinking::take(&mut body).unwrap().variables(&Warnings::default());
            assert_eq!(Value::Object(variables), expected, "{fields}");
        }
    }
}

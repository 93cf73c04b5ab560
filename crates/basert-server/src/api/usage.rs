//! Token counts of a request.

use basert_engine::Prompt;
use serde_json::{Value, json};

use crate::model::Event;

/// Tokens of a request, of all its prompts and answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// The progress of each choice's prompt.
    prompts: Vec<Option<Prompt>>,
    answers_to_each: usize,
    pub completion: usize,
    /// Of these, those spent on reasoning.
    pub reasoning: usize,
}

impl Usage {
    /// Counts for a number of prompts, with a number of answers to each.
    pub fn new(prompts: usize, answers_to_each: usize) -> Usage {
        Usage { prompts: vec![None; prompts], answers_to_each: answers_to_each.max(1), completion: 0, reasoning: 0 }
    }

    /// Counts the tokens of an event.
    pub fn count(&mut self, event: &Event) {
        match event {
            Event::Prompt { choice, prompt } => {
                // The answers to a prompt share it.
                if let Some(place) = self.prompts.get_mut(choice / self.answers_to_each) {
                    *place = Some(*prompt);
                }
            }
            Event::End { tokens, reasoning, .. } => {
                self.completion += tokens;
                self.reasoning += reasoning;
            }
            _ => {}
        }
    }

    /// Tokens of the prompts.
    pub fn prompt(&self) -> usize {
        self.prompts.iter().flatten().map(|prompt| prompt.tokens).sum()
    }

    /// Those of them that were cached.
    pub fn cached(&self) -> usize {
        self.prompts.iter().flatten().map(|prompt| prompt.cached).sum()
    }

    /// As chat and text completions say it.
    pub fn openai(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt(),
            "completion_tokens": self.completion,
            "total_tokens": self.prompt() + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached() },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning },
        })
    }
}

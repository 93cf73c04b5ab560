//! Arguments of structured output.

use std::path::PathBuf;

use basert::Grammar;

use super::failure::mistake;
use super::model::read_text;

/// A constraint on the answer.
#[derive(clap::Args)]
#[command(next_help_heading = "Structure")]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// The answer is a JSON object
    #[arg(long)]
    json: bool,
    /// The answer is JSON that conforms to the JSON schema in this file
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// The answer follows the grammar in this file: GBNF if it has rules with ::=, else Lark
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
    /// The whole answer matches this regular expression
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    regex: Option<String>,
}

impl GrammarArgs {
    /// Refuses a constraint, as chats do not support them.
    pub fn refuse_in_chat(&self) -> anyhow::Result<()> {
        let given = self.json || self.json_schema.is_some() || self.grammar.is_some() || self.regex.is_some();
        if given { Err(mistake("structured output needs a prompt: a chat does not support it")) } else { Ok(()) }
    }

    /// The grammar, if an option gives one.
    pub fn grammar(&self) -> anyhow::Result<Option<Grammar>> {
        if let Some(path) = &self.json_schema {
            let schema = serde_json::from_str(&read_text(path)?)
                .map_err(|error| mistake(format!("{}: not JSON: {error}", path.display())))?;
            return Ok(Some(Grammar::JsonSchema(schema)));
        }
        if let Some(path) = &self.grammar {
            let text = read_text(path)?;
            return Ok(Some(if text.contains("::=") { Grammar::Gbnf(text) } else { Grammar::Lark(text) }));
        }
        Ok(match &self.regex {
            Some(regex) => Some(Grammar::Regex(regex.clone())),
            None => self.json.then_some(Grammar::JsonObject),
        })
    }
}

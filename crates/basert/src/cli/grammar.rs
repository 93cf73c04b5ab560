//! What an answer has to be, as arguments.

use std::path::PathBuf;

use basert::Grammar;

use super::failure::mistake;
use super::model::read_text;

/// What the answer has to be.
#[derive(clap::Args)]
#[command(next_help_heading = "Structure")]
#[group(multiple = false)]
pub struct GrammarArgs {
    /// A JSON object
    #[arg(long)]
    json: bool,
    /// JSON that is valid by the JSON schema in this file
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Text of the grammar in this file: GBNF where it has rules with ::=, Lark otherwise
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
    /// Text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    regex: Option<String>,
}

impl GrammarArgs {
    /// A chat takes none.
    pub fn refuse_in_chat(&self) -> anyhow::Result<()> {
        let given = self.json || self.json_schema.is_some() || self.grammar.is_some() || self.regex.is_some();
        if given { Err(mistake("what an answer has to be is for one prompt, and there is none")) } else { Ok(()) }
    }

    /// The grammar, if one was asked for.
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

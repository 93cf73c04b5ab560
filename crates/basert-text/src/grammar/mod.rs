//! Structured output: masks over the vocabulary, from JSON schemas, grammars and regular expressions.
//!
//! A [`GrammarCompiler`] compiles a [`Grammar`] to a [`Constraint`], which returns a mask before each token and
//! advances after it. The work is done by `llguidance`, an Earley parser over derivatives of regular expressions.

mod gbnf;
mod relaxed;
mod schema;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{Logger, Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{InferenceCapabilities, TokEnv};

pub use self::relaxed::relaxed;
use self::vocabulary::Vocabulary;
use crate::{CallGrammar, Dialect, Tokenizer};

/// The longest grammar or schema, in bytes of text.
const MOST_SOURCE: usize = 1 << 20;

/// Limits for the library. Times are measured on one core of a common server.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    // 20 ms of making regular expressions.
    initial_lexer_fuel: 1_000_000,
    // 15 ms and 3 ms for a token.
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // 100 MB.
    max_lexer_states: 100_000,
    max_grammar_size: 500_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// What is allowed to it for grammars that are written as such. Its time grows with the square of the items that it
/// looks at together: 200 ms.
const LIMITS_OF_GRAMMARS: ParserLimits = ParserLimits { step_max_items: 20_000, max_grammar_size: 20_000, ..LIMITS };

/// A constraint on an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that conforms to this schema, with properties in the schema's order.
    JsonSchema(Value),
    /// A grammar in the dialect of Lark that `llguidance` defines.
    Lark(String),
    /// A grammar in GBNF, llama.cpp's format.
    Gbnf(String),
    /// A regular expression that matches the whole answer.
    Regex(String),
    /// Tool calls, in a dialect.
    Calls(CallGrammar),
    /// Tool calls, or an answer by another grammar, which must not be one of tool calls.
    CallsOr(CallGrammar, Box<Grammar>),
}

impl Grammar {
    fn limits(&self) -> ParserLimits {
        match self {
            Grammar::Lark(_) | Grammar::Gbnf(_) => LIMITS_OF_GRAMMARS,
            Grammar::CallsOr(_, other) => other.limits(),
            Grammar::JsonObject | Grammar::JsonSchema(_) | Grammar::Regex(_) | Grammar::Calls(_) => LIMITS,
        }
    }
}

/// What may precede the constrained part of an answer.
#[derive(Clone, Debug, Default)]
pub enum Preface {
    /// Nothing.
    #[default]
    None,
    /// Reasoning and headers, as the dialect writes them after this prompt.
    OfDialect {
        /// The dialect.
        dialect: Arc<Dialect>,
        /// What the answer follows.
        prompt: String,
        /// Whether the model may reason; if the prompt has begun to, it goes on in any case.
        reasons: bool,
    },
}

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GrammarError {
    /// Masks are not possible with the tokenizer.
    #[error("grammars cannot be used with this model: {reason}")]
    Tokenizer {
        /// Why.
        reason: String,
    },
    /// A part of a JSON schema is not supported.
    #[error("schema{}{path}: {reason}", if path.is_empty() { "" } else { " at " })]
    Schema {
        /// Where in the schema, as a JSON pointer; empty for the schema itself.
        path: String,
        /// What is not supported.
        reason: String,
    },
    /// The grammar or regular expression is wrong or too large.
    #[error("{kind}: {reason}")]
    Grammar {
        /// What it was given as.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The required tool calls are not possible.
    #[error("tools: {reason}")]
    Tools {
        /// What is wrong.
        reason: String,
    },
    /// An error during generation.
    #[error("the grammar cannot continue: {reason}")]
    Step {
        /// What happened: a limit was exceeded, or a token was not allowed.
        reason: String,
    },
}

/// Compiles grammars for a tokenizer. Create it once for each: it indexes the whole vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    tokenizer: Arc<Tokenizer>,
}

impl GrammarCompiler {
    /// A compiler for the tokenizer's vocabulary.
    ///
    /// # Errors
    /// When the vocabulary is too large or has no end-of-text token.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let failed = |reason| GrammarError::Tokenizer { reason };
        let factory = on_own_stack(|| {
            let environment: TokEnv = Arc::new(Vocabulary::new(&tokenizer)?);
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(|e| e.to_string())
        });
        Ok(Self { factory: factory.map_err(failed)?, tokenizer })
    }

    /// Compiles a grammar for a whole answer.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or has something that is not supported.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        self.compile_after(grammar, &Preface::None)
    }

    /// Compiles a grammar for what follows a preface.
    ///
    /// # Errors
    /// As for [`GrammarCompiler::compile`].
    pub fn compile_after(&self, grammar: &Grammar, preface: &Preface) -> Result<Constraint, GrammarError> {
        self.start(self.sources(grammar)?, preface, grammar.limits()).map_err(|reason| self.blame(grammar, reason))
    }

    /// What the library gets: a grammar for each kind of answer that there may be.
    fn sources(&self, grammar: &Grammar) -> Result<Vec<(Answer, GrammarWithLexer)>, GrammarError> {
        let checked = |source: &str| refuse_long(source).map_err(|reason| self.blame(grammar, reason));
        let source = match grammar {
            Grammar::JsonObject => return self.sources(&Grammar::JsonSchema(any_object())),
            Grammar::JsonSchema(schema) => {
                schema::check(schema)?;
                GrammarWithLexer::from_json_schema(schema::with_space(schema))
            }
            Grammar::Lark(lark) => {
                checked(lark)?;
                GrammarWithLexer::from_lark(lark.clone())
            }
            Grammar::Gbnf(gbnf) => {
                checked(gbnf)?;
                let lark = on_own_stack(|| gbnf::to_lark(gbnf)).map_err(|reason| self.blame(grammar, reason))?;
                GrammarWithLexer::from_lark(lark)
            }
            Grammar::Regex(regex) => {
                checked(regex)?;
                GrammarWithLexer::from_regex(regex)
            }
            Grammar::Calls(calls) => {
                for (name, schema) in calls.tools() {
                    let compiled = self.compile(&Grammar::JsonSchema(schema.clone()));
                    compiled.map_err(|error| GrammarError::Tools { reason: format!("{name}: {error}") })?;
                }
                let lark = GrammarWithLexer::from_lark(calls.to_lark(&self.tokenizer));
                return Ok(vec![(Answer::Calls, lark)]);
            }
            Grammar::CallsOr(calls, other) => {
                // That nothing satisfies it shows only where there are no calls instead.
                self.compile(other)?;
                let mut sources = self.sources(&Grammar::Calls(calls.clone()))?;
                sources.extend(self.sources(other)?);
                return Ok(sources);
            }
        };
        Ok(vec![(Answer::Text, source)])
    }

    /// The error that a grammar cannot be used for this reason.
    fn blame(&self, grammar: &Grammar, reason: String) -> GrammarError {
        match grammar {
            Grammar::JsonObject => self.blame(&Grammar::JsonSchema(any_object()), reason),
            Grammar::JsonSchema(schema) => schema::blame(schema, reason, &|part| {
                let source = GrammarWithLexer::from_json_schema(schema::with_space(part));
                self.start(vec![(Answer::Text, source)], &Preface::None, LIMITS).map(drop)
            }),
            Grammar::Lark(_) | Grammar::Gbnf(_) => GrammarError::Grammar { kind: "grammar", reason },
            Grammar::Regex(_) => GrammarError::Grammar { kind: "regular expression", reason },
            Grammar::Calls(_) | Grammar::CallsOr(..) => GrammarError::Tools { reason },
        }
    }

    fn start(
        &self,
        sources: Vec<(Answer, GrammarWithLexer)>,
        preface: &Preface,
        limits: ParserLimits,
    ) -> Result<Constraint, String> {
        let answers: Vec<Answer> = sources.iter().map(|&(answer, _)| answer).collect();
        let lark = match preface {
            Preface::OfDialect { dialect, prompt, reasons } => {
                Some(dialect.preface(&self.tokenizer, prompt, *reasons, &answers))
            }
            Preface::None => (answers.len() > 1).then(|| format!("start: {}", Answer::any(&answers, ""))),
        };
        let named = lark.is_some();
        let mut grammars: Vec<_> = lark.map(GrammarWithLexer::from_lark).into_iter().collect();
        grammars.extend(
            sources
                .into_iter()
                .map(|(answer, grammar)| GrammarWithLexer { name: named.then(|| answer.name().into()), ..grammar }),
        );
        let top = TopLevelGrammar { grammars, max_tokens: None };
        on_own_stack(|| {
            let (grammar, logger) = (GrammarInit::Serialized(top), Logger::new(0, 0));
            let capabilities = InferenceCapabilities::default();
            let parser = self.factory.create_parser_from_init_ext(grammar, logger, capabilities, limits);
            let matcher = Matcher::new(parser);
            if let Some(error) = matcher.get_error() {
                return Err(error);
            }
            let mut constraint = Constraint { matcher, tokenizer: Arc::clone(&self.tokenizer), mask: None };
            // What no text can satisfy shows at the first token.
            match constraint.mask() {
                Err(GrammarError::Step { reason }) => Err(reason),
                _ => Ok(constraint),
            }
        })
    }
}

fn any_object() -> Value {
    json!({"type": "object"})
}

/// What a grammar is for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Answer {
    Text,
    Calls,
}

impl Answer {
    /// What other grammars call it.
    fn name(self) -> &'static str {
        match self {
            Answer::Text => "text",
            Answer::Calls => "calls",
        }
    }

    /// One of these in Lark, a text after its header.
    pub(crate) fn any(answers: &[Answer], header: &str) -> String {
        let one = |answer: &Answer| match answer {
            Answer::Text => format!("{header} @{}", answer.name()),
            Answer::Calls => format!("@{}", answer.name()),
        };
        answers.iter().map(one).collect::<Vec<_>>().join(" | ")
    }
}

fn refuse_long(source: &str) -> Result<(), String> {
    match source.len() {
        0 => Err("empty".into()),
        1..=MOST_SOURCE => Ok(()),
        len => Err(format!("{len} bytes; expected up to {MOST_SOURCE}")),
    }
}

/// Runs the library where its recursion has room. A panic there is an error.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    crate::stack::on_own_stack("llguidance", work).and_then(|result| result)
}

/// The state of a grammar in one answer.
pub struct Constraint {
    matcher: Matcher,
    tokenizer: Arc<Tokenizer>,
    /// The mask, once computed.
    mask: Option<Vec<u32>>,
}

impl Constraint {
    /// The mask of the next token: token `t` is allowed if bit `t % 32` of word `t / 32` is set. At least one is.
    /// End-of-text tokens are allowed if the answer may end, and are the only ones if it must.
    ///
    /// # Errors
    /// When the limits of a step are exceeded.
    pub fn mask(&mut self) -> Result<&[u32], GrammarError> {
        if self.mask.is_none() {
            let mask = guarded(|| self.matcher.compute_mask_or_eos())
                .map_err(|reason| GrammarError::Step { reason: schema::in_plain_words(&reason) })?;
            self.mask = Some(mask.into());
        }
        Ok(self.mask.as_deref().unwrap_or_default())
    }

    /// Whether a token is allowed next.
    ///
    /// # Errors
    /// As for [`Constraint::mask`].
    pub fn allows(&mut self, token: u32) -> Result<bool, GrammarError> {
        Ok(self.mask()?.get(token as usize / 32).is_some_and(|word| word & (1 << (token % 32)) != 0))
    }

    /// Advances by a token.
    ///
    /// # Errors
    /// When the token is not allowed. The constraint cannot be used after that.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if !self.allows(token)? {
            let text = String::from_utf8_lossy(self.tokenizer.token_bytes(token).unwrap_or_default()).into_owned();
            return Err(GrammarError::Step { reason: format!("token {token}, {text:?}, is not allowed here") });
        }
        self.mask = None;
        if self.matcher.is_stopped() {
            return Ok(());
        }
        guarded(|| self.matcher.consume_token(token)).map_err(|reason| GrammarError::Step { reason })
    }

    /// Whether the answer may end here.
    pub fn can_end(&mut self) -> bool {
        self.is_finished() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the answer must end here.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl Clone for Constraint {
    /// A constraint for another answer that continues from here. Nothing is shared, so both can be used on different
    /// threads.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), tokenizer: Arc::clone(&self.tokenizer), mask: self.mask.clone() }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

fn guarded<T, E: std::fmt::Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("llguidance panicked".into()),
    }
}

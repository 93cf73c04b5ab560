//! What is known of an open model beside its engine: its files, its plan, its tokenizer, its chat template.

use std::sync::{Arc, OnceLock};

use basert_core::KvFormat;
use basert_engine::{Pooling, Sampling};
use basert_files::ModelFile;
use basert_graph::WeightError;
use basert_plan::{Facts, Plan};
use basert_text::{
    Chat, ChatTemplate, Constraint, Dialect, EncodeOptions, Grammar, GrammarCompiler, GrammarError, Preface, Tokenizer,
};
use serde_json::{Map, Value};

use crate::chat::ChatPrompt;
use crate::pooled::Pooled;
use crate::rank::Ranking;
use crate::{Error, Message, pooling, sampling};

/// Everything of an open model but its engine.
pub struct ModelInfo {
    pub(crate) file: Arc<ModelFile>,
    pub(crate) plan: Arc<Plan>,
    facts: Facts,
    pub(crate) kv: KvFormat,
    tokenizer: Arc<Tokenizer>,
    /// Compiles grammars; built when first needed, as it indexes the whole vocabulary.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
    template: Option<ChatTemplate>,
    dialect: Arc<Dialect>,
    reasons: bool,
    /// The control tokens that the dialect needs to see.
    pub(crate) markers: Vec<u32>,
    sampling: Sampling,
    warnings: Vec<String>,
    /// Found when first needed, as it looks at the whole vocabulary.
    longest_token: OnceLock<usize>,
    /// What becomes of the pooled hidden state of a text.
    pub(crate) pooled: Option<Arc<Pooled>>,
    /// How the model ranks; found when first needed.
    pub(crate) rankings: OnceLock<Result<Ranking, String>>,
}

impl ModelInfo {
    /// With a chat template and its source, if there is one.
    pub(crate) fn new(
        file: Arc<ModelFile>,
        plan: Arc<Plan>,
        (facts, kv): (Facts, KvFormat),
        tokenizer: Arc<Tokenizer>,
        template: Option<(ChatTemplate, String)>,
    ) -> Result<ModelInfo, WeightError> {
        let pooled = Pooled::of(&plan.graph, &file)?.map(Arc::new);
        let (sampling, warnings) = sampling::of_model(&file);
        let dialect = Dialect::of_template(template.as_ref().map_or("", |(_, source)| source));
        let template = template.map(|(template, _)| template);
        let reasons = template.as_ref().is_some_and(|template| dialect.reasons(template));
        let markers = dialect.tokens(&tokenizer);
        let (grammars, rankings) = (OnceLock::new(), OnceLock::new());
        Ok(ModelInfo {
            file,
            plan,
            facts,
            kv,
            tokenizer,
            grammars,
            template,
            dialect,
            reasons,
            markers,
            sampling,
            warnings,
            longest_token: OnceLock::new(),
            pooled,
            rankings,
        })
    }

    /// The same with another tokenizer.
    pub(crate) fn with_tokenizer(self, tokenizer: Arc<Tokenizer>) -> ModelInfo {
        let markers = self.dialect.tokens(&tokenizer);
        ModelInfo { tokenizer, markers, longest_token: OnceLock::new(), grammars: OnceLock::new(), ..self }
    }

    /// The model's files.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The execution plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The facts of the device.
    pub fn device(&self) -> &Facts {
        &self.facts
    }

    /// How its KV cache stores keys and values.
    pub fn kv(&self) -> KvFormat {
        self.kv
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        *self.longest_token.get_or_init(|| {
            let bytes = |id| self.tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
            (0..self.tokenizer.vocab_size() as u32).map(bytes).max().unwrap_or(0)
        })
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// How the model writes reasoning and tool calls.
    pub fn dialect(&self) -> &Arc<Dialect> {
        &self.dialect
    }

    /// Whether the model may reason before it answers.
    pub fn reasons(&self) -> bool {
        self.reasons
    }

    /// The default sampling settings: those that the model's files recommend, and basert's defaults for the others.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Warnings about faults in the model's files that are ignored.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How the model was trained to pool hidden states, if its files say so; else the mean.
    ///
    /// # Errors
    /// When its pooling is not supported, or the model was trained for something else than embeddings.
    pub fn pooling(&self) -> Result<Pooling, Error> {
        pooling::of(&self.file, &self.plan.graph).map_err(|what| Error::Model { file: self.name(), what })
    }

    /// Tokens of a plain text, after the beginning-of-text token if the model expects one.
    ///
    /// # Errors
    /// When the vocabulary cannot spell the text.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        let options = EncodeOptions { add_special: true, parse_special: true };
        self.tokenizer.encode(text, options).map_err(|source| Error::Tokenizer { file: self.name(), source })
    }

    /// The prompt of a chat, up to where the answer begins, or continues if the last message is the assistant's.
    /// `tools` are declarations of functions in OpenAI's form; `variables`, such as `enable_thinking`, are passed to the
    /// template. Text of the messages never becomes a control token.
    ///
    /// # Errors
    /// When the model has no template, or the template refuses the messages.
    pub fn chat_prompt(
        &self,
        messages: &[Message],
        tools: &[Value],
        variables: Option<&Map<String, Value>>,
    ) -> Result<ChatPrompt, Error> {
        let template = self.template.as_ref().ok_or_else(|| Error::NoTemplate { file: self.name() })?;
        let messages: Vec<_> = messages.iter().map(|message| message.0.clone()).collect();
        let chat = Chat { messages: &messages, tools, variables, ..Chat::default() };
        let prompt = self.dialect.prompt(template, &self.tokenizer, &chat);
        let prompt = prompt.map_err(|source| Error::Template { file: self.name(), source })?;
        let tokens = prompt.tokens(&self.tokenizer);
        let tokens = tokens.map_err(|source| Error::Tokenizer { file: self.name(), source })?;
        let asked = variables.and_then(|variables| variables.get("enable_thinking")).and_then(Value::as_bool);
        let reasons = self.reasons && asked.unwrap_or(true);
        Ok(ChatPrompt { text: prompt.text, tokens, tools: tools.to_vec(), reasons })
    }

    /// The constraint that a grammar puts on an answer that is plain text. The first call indexes the vocabulary.
    ///
    /// # Errors
    /// When the grammar is wrong, too large, or has something that is not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        self.constraint_after(grammar, &Preface::None)
    }

    /// The constraint that a grammar puts on the answer to a chat of this text, which may come after reasoning if
    /// `reasons` is set.
    ///
    /// # Errors
    /// As for [`ModelInfo::constraint`].
    pub fn chat_constraint(&self, grammar: &Grammar, prompt: &str, reasons: bool) -> Result<Constraint, GrammarError> {
        let (dialect, prompt) = (self.dialect.clone(), prompt.to_owned());
        self.constraint_after(grammar, &Preface::OfDialect { dialect, prompt, reasons })
    }

    fn constraint_after(&self, grammar: &Grammar, preface: &Preface) -> Result<Constraint, GrammarError> {
        let compiler = self.grammars.get_or_init(|| GrammarCompiler::new(self.tokenizer.clone()));
        compiler.as_ref().map_err(Clone::clone)?.compile_after(grammar, preface)
    }

    /// The name of its file, for errors.
    pub(crate) fn name(&self) -> String {
        self.file.path().display().to_string()
    }
}

//! Parsing of an answer's tokens to the pieces that a client gets.

use std::sync::Arc;

use basert_engine::{Allowed, EngineError, Prompt, Reader, Readiness, Token};
use basert_text::{Constraint, Detokenizer, Event as Part, Parser, ParserOptions, StopTexts, Tokenizer};

use crate::info::ModelInfo;
use crate::pooled::{Pooled, normalised};
use crate::random;
use crate::request::{Drafts, Event, Finish, Listener, Request};

/// The reader of an answer's tokens.
pub(crate) struct TextReader {
    choice: usize,
    tokenizer: Arc<Tokenizer>,
    detokenizer: Option<Detokenizer<Arc<Tokenizer>>>,
    text: Text,
    calls: Calls,
    constraint: Option<Constraint>,
    ignore_end: bool,
    ends: Vec<u32>,
    /// Whether tokens are wanted beside their text.
    wants_tokens: bool,
    /// The prompt's tokens, where their log probabilities are wanted and not sent yet.
    echo: Vec<Token>,
    tokens: usize,
    reasoning: usize,
    drafts: Drafts,
    pooled: Option<Arc<Pooled>>,
    is_raw: bool,
    listener: Box<dyn Listener>,
}

/// The parser of an answer.
#[derive(Clone)]
pub(crate) enum Text {
    Plain(StopTexts),
    Chat(Parser),
}

impl Text {
    /// That of a request's answers before their first token. Copies share what is large.
    pub fn new(model: &ModelInfo, request: &Request) -> Text {
        let Some(chat) = &request.chat else { return Text::Plain(StopTexts::new(&request.stop)) };
        Text::Chat(model.dialect().parser(ParserOptions {
            prompt: &chat.prompt,
            tools: &chat.tools,
            stop: &request.stop,
            seed: 0,
        }))
    }

    fn push(&mut self, text: &str) -> Vec<Part> {
        match self {
            Text::Plain(stop) => {
                let mut ready = String::new();
                stop.push(text, &mut ready);
                content(ready)
            }
            Text::Chat(parser) => parser.push(text),
        }
    }

    /// The last text, and what was held back till then. `ended` where the model said that it is the last.
    fn finish(&mut self, text: &str, ended: bool) -> Vec<Part> {
        let mut parts = self.push(text);
        match std::mem::replace(self, Text::Plain(StopTexts::default())) {
            Text::Plain(mut stop) => {
                let mut ready = String::new();
                stop.flush(&mut ready);
                parts.extend(content(ready));
            }
            Text::Chat(parser) => parts.extend(if ended { parser.finish() } else { parser.cut_off() }),
        }
        parts
    }

    fn stopped(&self) -> Option<&str> {
        match self {
            Text::Plain(stop) => stop.came(),
            Text::Chat(parser) => parser.stopped(),
        }
    }
}

fn content(text: String) -> Vec<Part> {
    if text.is_empty() { vec![] } else { vec![Part::Content(text)] }
}

/// The tool calls in an answer.
#[derive(Default)]
struct Calls {
    ended: usize,
    broken: usize,
    /// No more than one is wanted.
    one: bool,
}

impl Calls {
    fn count(&mut self, part: &Part) {
        match part {
            Part::CallEnded { .. } => self.ended += 1,
            Part::CallBroken { .. } => self.broken += 1,
            _ => {}
        }
    }
}

impl TextReader {
    /// For the answer of this number in the request.
    pub fn new(
        model: &ModelInfo,
        choice: usize,
        request: &Request,
        text: Text,
        listener: Box<dyn Listener>,
    ) -> TextReader {
        let tokenizer = model.tokenizer().clone();
        let detokenizer = Detokenizer::continuing(tokenizer.clone(), true);
        let mut echo = Vec::new();
        let prompt = &request.prompts[choice / request.n];
        if let (true, Some(&id)) = (request.prompt_logprobs, prompt.first()) {
            echo.reserve_exact(prompt.len());
            echo.push(Token { id, logprobs: None, was_drafted: false });
        }
        let (detokenizer, text) = match text {
            Text::Plain(stop) => (detokenizer, Text::Plain(stop)),
            Text::Chat(parser) => {
                (detokenizer.showing(model.markers.clone()), Text::Chat(parser.with_seed(random::seed())))
            }
        };
        TextReader {
            choice,
            tokenizer,
            detokenizer: Some(detokenizer),
            text,
            calls: Calls { one: request.chat.as_ref().is_some_and(|chat| chat.one_call), ..Calls::default() },
            constraint: request.constraint.clone(),
            ignore_end: request.ignore_end,
            ends: request.ends.clone(),
            wants_tokens: request.tokens || request.logprobs.is_some(),
            echo,
            tokens: 0,
            reasoning: 0,
            drafts: Drafts::default(),
            pooled: model.pooled.clone(),
            is_raw: request.is_raw || model.pooled.as_ref().is_some_and(|pooled| pooled.is_scores),
            listener,
        }
    }

    fn send(&mut self, event: Event) {
        self.listener.event(Ok(event));
    }

    /// Says what is known of the prompt, before anything else.
    fn say_echo(&mut self) {
        let tokens = std::mem::take(&mut self.echo);
        self.piece(vec![], tokens);
    }

    fn piece(&mut self, parts: Vec<Part>, tokens: Vec<Token>) {
        parts.iter().for_each(|part| self.calls.count(part));
        self.reasoning += usize::from(parts.iter().any(|part| matches!(part, Part::Reasoning(_))));
        if !parts.is_empty() || !tokens.is_empty() {
            self.send(Event::Piece { choice: self.choice, parts, tokens });
        }
    }

    fn finish(&mut self, finish: Finish, tokens: Vec<Token>) {
        self.say_echo();
        let mut rest = String::new();
        if let Some(detokenizer) = self.detokenizer.take() {
            detokenizer.finish(&mut rest);
        }
        let parts = self.text.finish(&rest, finish == Finish::End);
        self.piece(parts, tokens);
        let finish = match finish {
            // An incomplete call must not be reported as a call.
            Finish::End if self.calls.broken > 0 => Finish::End,
            _ if self.calls.broken > 0 => Finish::Length,
            Finish::End if self.calls.ended > 0 => Finish::Calls,
            finish => finish,
        };
        let (choice, tokens, reasoning, drafts) = (self.choice, self.tokens, self.reasoning, self.drafts);
        self.send(Event::End { choice, finish, tokens, reasoning, drafts });
    }
}

impl Reader for TextReader {
    fn readiness(&self) -> Readiness {
        self.listener.readiness()
    }

    fn prompt(&mut self, prompt: Prompt) {
        self.send(Event::Prompt { choice: self.choice, prompt });
    }

    fn prompt_token(&mut self, token: Token) {
        self.echo.push(token);
    }

    fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    fn mask(&mut self) -> Allowed<'_> {
        let Some(constraint) = &mut self.constraint else { return Ok(None) };
        constraint.mask().map(Some).map_err(|error| error.to_string())
    }

    fn drafted(&mut self, proposed: usize) {
        self.drafts.proposed += proposed;
    }

    fn token(&mut self, token: Token) -> bool {
        self.listener.token();
        self.tokens += 1;
        self.drafts.accepted += usize::from(token.was_drafted);
        self.say_echo();
        let id = token.id;
        let tokens = Vec::from_iter(Some(token).filter(|_| self.wants_tokens));
        if self.ends.contains(&id) || !self.ignore_end && self.tokenizer.end_of_generation().contains(&id) {
            self.finish(Finish::End, tokens);
            return false;
        }
        let mut text = String::new();
        if let Some(detokenizer) = &mut self.detokenizer {
            detokenizer.push(id, &mut text);
        }
        let parts = self.text.push(&text);
        self.piece(parts, tokens);
        if let Some(constraint) = &mut self.constraint {
            if let Err(error) = constraint.accept(id) {
                self.end(Err(EngineError::Constraint(error.to_string())));
                return false;
            }
            if constraint.is_finished() {
                self.finish(Finish::End, vec![]);
                return false;
            }
        }
        let finish = match self.text.stopped() {
            Some(stop) => Finish::Stop(stop.to_owned()),
            None if self.calls.one && self.calls.ended > 0 => Finish::End,
            None => return true,
        };
        self.finish(finish, vec![]);
        false
    }

    fn embedding(&mut self, vector: Vec<f32>) {
        let vector = match &self.pooled {
            Some(pooled) => pooled.apply(vector),
            None => vector,
        };
        let vector = if self.is_raw { vector } else { normalised(&vector) };
        self.send(Event::Embedding { choice: self.choice, vector });
    }

    fn end(&mut self, result: Result<(), EngineError>) {
        match result {
            Ok(()) => self.finish(Finish::Length, vec![]),
            Err(error) => self.listener.event(Err(error)),
        }
    }
}

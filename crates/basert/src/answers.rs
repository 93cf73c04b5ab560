//! Answers, as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::task::Poll;
use std::time::{Duration, Instant};

use basert_engine::{EngineError, Readiness, Sampling, SamplingOptions, TokenLogprobs};
use basert_text::{Event as Part, Grammar};

use crate::Error;
use crate::request::{BURST, Drafts, Event, Finish, Listener, Request};

/// How an answer is generated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// Limit on the answer's tokens; none means the rest of the context.
    pub max_tokens: Option<usize>,
    /// Sampling settings that replace the model's defaults ([`crate::ModelInfo::sampling`]).
    pub sampling: SamplingOptions,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Continue after the model's end-of-text token.
    pub ignore_end: bool,
    /// A constraint on the answer, which ends when the constraint is complete; none allows any text.
    pub grammar: Option<Grammar>,
    /// If set, log probabilities are wanted, with this many of the likeliest tokens at each position.
    pub logprobs: Option<usize>,
}

impl Generation {
    /// Greedy decoding, whose result is the same every time.
    pub fn greedy() -> Generation {
        Generation { sampling: SamplingOptions::greedy(), ..Generation::default() }
    }

    /// A request without prompts, of a model with these default settings.
    pub(crate) fn request(&self, sampling: &Sampling) -> Request {
        Request {
            sampling: self.sampling.over(sampling),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            tokens: true,
            logprobs: self.logprobs,
            ignore_end: self.ignore_end,
            ..Request::default()
        }
    }
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCall {
    /// To which its result will refer.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
    /// Whether the call is complete, and its arguments are valid JSON; otherwise it must not be executed.
    pub is_complete: bool,
}

/// A whole answer, or what there is of it so far.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The model's reasoning, if the answer is one of a chat.
    pub reasoning: String,
    /// The calls of tools.
    pub calls: Vec<ToolCall>,
    /// The tokens, including the one that ended the answer.
    pub tokens: Vec<u32>,
    /// Their log probabilities, if wanted.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended; none if it was not waited for.
    pub finish: Option<Finish>,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were found in the prefix cache.
    pub cached_tokens: usize,
    /// Time from the request to the first token.
    pub prompt_time: Duration,
    /// Time from the first token to the last one.
    pub answer_time: Duration,
    /// Its draft tokens, if it was waited for.
    pub drafts: Drafts,
}

impl Answer {
    fn add(&mut self, part: &Part) {
        match part {
            Part::Content(text) => self.text.push_str(text),
            Part::Reasoning(text) => self.reasoning.push_str(text),
            Part::CallBegan { id, name, .. } => {
                self.calls.push(ToolCall { id: id.clone(), name: name.clone(), ..ToolCall::default() });
            }
            Part::Arguments { index, delta } => {
                self.calls.get_mut(*index).into_iter().for_each(|call| call.arguments.push_str(delta));
            }
            Part::CallEnded { index } => {
                self.calls.get_mut(*index).into_iter().for_each(|call| call.is_complete = true);
            }
            Part::CallBroken { .. } => {}
        }
    }
}

/// The answers to a request: an iterator of their events. Dropping it ends them.
pub struct Answers {
    events: Receiver<Result<Event, EngineError>>,
    mailbox: Arc<Mailbox>,
    answers: Vec<Answer>,
    vectors: Vec<Vec<f32>>,
    /// Number of answers that have not ended.
    left: usize,
    began: Instant,
}

/// What both sides of the channel know.
struct Mailbox {
    /// Events that nobody has taken yet.
    waiting: AtomicUsize,
    /// How many may wait before answers do.
    room: usize,
    /// Nobody takes any more.
    is_closed: AtomicBool,
}

/// The model's side of [`Answers`].
#[derive(Clone)]
pub(crate) struct Post {
    sender: Sender<Result<Event, EngineError>>,
    mailbox: Arc<Mailbox>,
}

impl Listener for Post {
    fn readiness(&self) -> Readiness {
        if self.mailbox.is_closed.load(Ordering::Relaxed) {
            Readiness::Gone
        } else if self.mailbox.waiting.load(Ordering::Relaxed) > self.mailbox.room {
            Readiness::Busy
        } else {
            Readiness::Ready
        }
    }

    fn event(&mut self, event: Result<Event, EngineError>) {
        self.mailbox.waiting.fetch_add(1, Ordering::Relaxed);
        // Who asked may have gone.
        let _ = self.sender.send(event);
    }
}

impl Answers {
    pub(crate) fn channel(request: &Request) -> (Post, Answers) {
        let (sender, events) = mpsc::channel();
        let left = request.n * request.prompts.len();
        let room = 64 + BURST * left;
        let mailbox = Arc::new(Mailbox { waiting: AtomicUsize::new(0), room, is_closed: AtomicBool::new(false) });
        let answers = vec![Answer::default(); left];
        let post = Post { sender, mailbox: mailbox.clone() };
        (post, Answers { events, mailbox, answers, vectors: vec![Vec::new(); left], left, began: Instant::now() })
    }

    /// Waits at most so long for the next event. None after all answers have ended, or one failed.
    pub fn poll(&mut self, limit: Duration) -> Poll<Option<Result<Event, Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.events.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Poll::Pending,
            Err(RecvTimeoutError::Disconnected) => Poll::Ready(self.take(Err(EngineError::Stopped))),
            Ok(event) => Poll::Ready(self.take(event)),
        }
    }

    fn take(&mut self, event: Result<Event, EngineError>) -> Option<Result<Event, Error>> {
        self.mailbox.waiting.fetch_sub(1, Ordering::Relaxed);
        match &event {
            Ok(event) => self.record(event),
            Err(_) => self.left = 0,
        }
        Some(event.map_err(Error::from))
    }

    fn record(&mut self, event: &Event) {
        match event {
            Event::Prompt { choice, prompt } => {
                let answer = &mut self.answers[*choice];
                (answer.prompt_tokens, answer.cached_tokens) = (prompt.tokens, prompt.cached);
            }
            Event::Piece { choice, parts, tokens } => {
                let answer = &mut self.answers[*choice];
                if answer.tokens.is_empty() && !tokens.is_empty() {
                    answer.prompt_time = self.began.elapsed();
                }
                answer.answer_time = self.began.elapsed().saturating_sub(answer.prompt_time);
                parts.iter().for_each(|part| answer.add(part));
                answer.tokens.extend(tokens.iter().map(|token| token.id));
                answer.logprobs.extend(tokens.iter().filter_map(|token| token.logprobs.clone()));
            }
            Event::Embedding { choice, vector } => self.vectors[*choice].clone_from(vector),
            Event::End { choice, finish, drafts, .. } => {
                let answer = &mut self.answers[*choice];
                (answer.finish, answer.drafts) = (Some(finish.clone()), *drafts);
                self.left -= 1;
            }
        }
    }

    /// Gives the content of the first answer to `each`, piece by piece, until it ends or `each` returns false. Returns the
    /// answer.
    ///
    /// # Errors
    /// When an answer fails.
    pub fn tell(mut self, mut each: impl FnMut(&str) -> bool) -> Result<Answer, Error> {
        for event in self.by_ref() {
            let Event::Piece { choice: 0, parts, .. } = event? else { continue };
            let mut texts = parts.iter().filter_map(|part| match part {
                Part::Content(text) => Some(text),
                _ => None,
            });
            if !texts.all(|text| each(text)) {
                break;
            }
        }
        Ok(self.into_answers().swap_remove(0))
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// When one fails.
    pub fn wait(mut self) -> Result<Vec<Answer>, Error> {
        self.by_ref().try_for_each(|event| event.map(drop))?;
        Ok(self.into_answers())
    }

    /// Waits for all embeddings.
    pub(crate) fn vectors(mut self) -> Result<Vec<Vec<f32>>, Error> {
        self.by_ref().try_for_each(|event| event.map(drop))?;
        Ok(std::mem::take(&mut self.vectors))
    }

    /// The answers so far, in order. Those that have not ended do so.
    pub fn into_answers(mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }
}

impl Iterator for Answers {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let event = self.events.recv().unwrap_or(Err(EngineError::Stopped));
        self.take(event)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.mailbox.is_closed.store(true, Ordering::Relaxed);
    }
}

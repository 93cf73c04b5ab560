//! The parser of an answer, while it is generated.

use std::sync::Arc;

use serde_json::Value;

use super::call::{Calls, Flow, Found, Tool};
use super::{CallStyle, Dialect, Form};
use crate::StopTexts;

/// The longest header of a message, in bytes.
const LONGEST_HEADER: usize = 1024;

/// An event of the parser: a part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// More of the content.
    Content(String),
    /// More of the reasoning.
    Reasoning(String),
    /// A call begins.
    CallBegan {
        /// The call's index in the answer, from 0.
        index: usize,
        /// The call's id, to which its result will refer: the model's own or a generated one.
        id: String,
        /// The name of the tool.
        name: String,
    },
    /// More of the call's arguments, which are a JSON object.
    Arguments {
        /// The call.
        index: usize,
        /// The text that comes next.
        delta: String,
    },
    /// The call is complete, and its arguments are valid JSON.
    CallEnded {
        /// The call.
        index: usize,
    },
    /// The call was cut off, or its arguments are not JSON. It must not be executed.
    CallBroken {
        /// The call.
        index: usize,
    },
}

/// The context of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct ParserOptions<'a> {
    /// The text that the answer follows; its end may have opened a reasoning, or a message's header.
    pub prompt: &'a str,
    /// The tools, `{"type": "function", "function": {…}}`. Without tools there are no calls.
    pub tools: &'a [Value],
    /// Stop texts, which end the answer when they appear in its content.
    pub stop: &'a [String],
    /// Seed of the call ids; must be different for every answer.
    pub seed: u64,
}

/// Parses an answer into [`Event`]s, from pieces of its text that may begin and end anywhere.
///
/// Joined together, the events do not depend on how the text was cut. Text that only looks like the beginning of a call
/// comes back as content.
#[derive(Clone, Debug)]
pub struct Parser {
    dialect: Arc<Dialect>,
    tools: Arc<[Tool]>,
    seed: u64,
    stop: StopTexts,
    state: State,
    /// Text that may be the beginning of a marker.
    held: String,
    /// Line feeds and space that are dropped if a marker follows.
    space: String,
    /// Content has come since the beginning, the reasoning, or the last call.
    has_text: bool,
    /// What came last, if it was not content.
    after: After,
    /// Content that is not yet searched for stop texts.
    content: String,
    said: [bool; 2],
    calls: usize,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// Reasoning, up to the marker of this pair, or in a channel.
    Reasoning(usize),
    /// In reasoning, from what looks like a call on: it is one if the reasoning never ends.
    Aside(usize, String),
    /// Calls of this style, or in a channel.
    Calls(Option<usize>, Box<Calls>),
    /// In a message's header, whose text begins with this many bytes from the prompt.
    Header {
        text: String,
        prompt: usize,
    },
    /// After a stop text.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Beginning,
    Reasoning,
    Call,
}

/// What a marker in text begins.
#[derive(Clone, Copy)]
enum Mark {
    Reasoning(usize),
    Call(usize),
    /// A call, unless the reasoning goes on.
    Aside,
    Header {
        is_channel: bool,
    },
    /// Nothing: the marker has no meaning of its own.
    Nothing,
}

impl Parser {
    pub(super) fn new(dialect: Arc<Dialect>, options: ParserOptions<'_>) -> Self {
        let mut parser = Self {
            dialect,
            tools: options.tools.iter().map(|tool| Tool::new(&tool["function"])).collect(),
            seed: options.seed,
            stop: StopTexts::default(),
            state: State::Text,
            held: String::new(),
            space: String::new(),
            has_text: false,
            after: After::Beginning,
            content: String::new(),
            said: [false; 2],
            calls: 0,
            events: Vec::new(),
        };
        parser.enter(options.prompt);
        parser.stop = StopTexts::new(options.stop);
        parser
    }

    /// The same, with other ids of calls: answers to one prompt share what is large.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Enters the state in which the prompt ends.
    fn enter(&mut self, prompt: &str) {
        if let Some(channels) = &self.dialect.channels {
            let Some((_, last)) = prompt.rsplit_once(channels.start.as_str()) else { return };
            self.state = State::Header { text: String::new(), prompt: 0 };
            last.chars().for_each(|c| self.feed(c));
            if let State::Header { text, prompt } = &mut self.state {
                *prompt = text.len();
            }
            self.events.clear();
            self.content.clear();
            self.said = [false; 2];
        } else {
            let end = prompt.trim_end();
            if let Some(open) = self.dialect.reasoning.iter().position(|pair| end.ends_with(pair.open.trim_end())) {
                self.state = State::Reasoning(open);
            }
        }
    }

    /// The stop text that has ended the answer, if one has. What follows is ignored.
    pub fn stopped(&self) -> Option<&str> {
        self.stop.came()
    }

    /// Takes the next piece of the answer, and returns the events that are certain now.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        text.chars().for_each(|c| self.feed(c));
        self.flush_content();
        std::mem::take(&mut self.events)
    }

    /// Ends an answer that the model ended, and returns the events held back until now. If only closing brackets of a
    /// call are missing, they are added.
    pub fn finish(self) -> Vec<Event> {
        self.last(true)
    }

    /// Ends an answer that was cut off, and returns the events held back until now.
    pub fn cut_off(self) -> Vec<Event> {
        self.last(false)
    }

    fn last(mut self, ended: bool) -> Vec<Event> {
        if let State::Aside(pair, text) = &mut self.state {
            let (pair, text) = (*pair, std::mem::take(text));
            if ended {
                self.state = State::Text;
                self.after = After::Reasoning;
                self.space.clear();
                text.chars().for_each(|c| self.feed(c));
            } else {
                self.state = State::Reasoning(pair);
                text.chars().for_each(|c| self.reasoning(c));
            }
        }
        if let State::Calls(style, calls) = &mut self.state {
            let style = style.and_then(|style| self.dialect.call.get(style));
            let mut found = Vec::new();
            calls.finish(style, &self.tools, ended, &mut found);
            let raw = std::mem::take(&mut calls.raw);
            self.report(found);
            self.state = State::Text;
            self.give_back(&raw);
        }
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => {
                self.give_back_held();
                if self.after == After::Beginning || self.has_text {
                    self.content.push_str(&self.space);
                }
            }
            State::Reasoning(pair) => {
                self.state = State::Reasoning(pair);
                let held = std::mem::take(&mut self.held);
                held.chars().for_each(|c| self.reasoning(c));
            }
            State::Header { text, prompt } => self.give_back(&text[prompt..]),
            State::Over | State::Aside(..) | State::Calls(..) => {}
        }
        self.flush_content();
        let mut rest = String::new();
        self.stop.flush(&mut rest);
        self.content_event(rest);
        self.events
    }

    fn feed(&mut self, c: char) {
        match &mut self.state {
            State::Over => {}
            State::Text | State::Reasoning(_) => {
                self.held.push(c);
                self.look_for_marker();
            }
            State::Calls(style, calls) => {
                let style: Option<&CallStyle> = style.and_then(|style| self.dialect.call.get(style));
                let mut found = Vec::new();
                let flow = calls.push(c, style, &self.tools, &mut found);
                let raw = if flow == Flow::Refused { std::mem::take(&mut calls.raw) } else { String::new() };
                self.report(found);
                if flow != Flow::Stay && !matches!(self.state, State::Over) {
                    self.state = State::Text;
                    self.give_back(&raw);
                    if flow == Flow::Refused {
                        self.feed(c);
                    }
                }
            }
            State::Header { text, .. } => {
                text.push(c);
                self.look_for_message();
            }
            State::Aside(pair, text) => {
                text.push(c);
                let close = &self.dialect.reasoning[*pair].close;
                if let Some(thought) = text.strip_suffix(close.as_str()) {
                    let (pair, thought) = (*pair, thought.to_owned());
                    self.state = State::Reasoning(pair);
                    thought.chars().for_each(|c| self.reasoning(c));
                    self.begin(Mark::Nothing, String::new());
                }
            }
        }
    }

    /// Checks whether the held text is a marker, may become one, or is text.
    fn look_for_marker(&mut self) {
        loop {
            let is_longer = |text: &str| text.len() > self.held.len() && text.starts_with(&self.held);
            if self.held.is_empty() || self.marks().any(|(text, _)| is_longer(text)) {
                return;
            }
            let longest =
                self.marks().filter(|(text, _)| self.held.starts_with(text)).max_by_key(|(text, _)| text.len());
            if let Some((len, mark)) = longest.map(|(text, mark)| (text.len(), mark)) {
                let rest = self.held.split_off(len);
                let text = std::mem::take(&mut self.held);
                self.begin(mark, text);
                return rest.chars().for_each(|c| self.feed(c));
            }
            let first = self.held.remove(0);
            if matches!(self.state, State::Reasoning(_)) {
                self.reasoning(first);
            } else if let Some(style) = self.bare_call(first) {
                let rest = std::mem::take(&mut self.held);
                self.begin(Mark::Call(style), String::new());
                self.feed(first);
                return rest.chars().for_each(|c| self.feed(c));
            } else {
                self.text(first);
            }
        }
    }

    /// The markers that mean something here.
    fn marks(&self) -> impl Iterator<Item = (&str, Mark)> {
        let Dialect { reasoning, call, channels, .. } = &*self.dialect;
        let open = match self.state {
            State::Reasoning(pair) => Some(pair),
            _ => None,
        };
        let is_text = open.is_none();
        let closes = reasoning.iter().enumerate().filter(move |(i, _)| open == Some(*i));
        let closes = closes.map(|(_, pair)| (pair.close.as_str(), Mark::Nothing));
        let is_first = is_text && self.after == After::Beginning && !self.has_text;
        let opens = reasoning.iter().enumerate().filter(move |_| is_first);
        let opens = opens.map(|(i, pair)| (pair.open.as_str(), Mark::Reasoning(i)));
        let has_calls = is_text && !self.tools.is_empty();
        let calls = call.iter().enumerate().filter(move |(_, style)| has_calls && !style.open.is_empty());
        let calls = calls.map(|(i, style)| (style.open.as_str(), Mark::Call(i)));
        // Inside reasoning, only unambiguous markers.
        let has_asides = !is_text && !self.tools.is_empty();
        let asides = call.iter().filter(move |style| has_asides && !style.open.is_empty() && !style.ambiguous);
        let asides = asides.map(|style| (style.open.as_str(), Mark::Aside));
        // Some models close a call twice, or one that they did not open.
        let after_call = has_calls && self.after == After::Call && !self.has_text;
        let closed = call.iter().filter(move |style| after_call && !style.close.is_empty() && !style.ambiguous);
        let closed = closed.map(|style| (style.close.as_str(), Mark::Nothing));
        let around = call.iter().filter(move |_| has_calls).flat_map(|style| [&style.around.open, &style.around.close]);
        let around = around.filter(|text| !text.is_empty()).map(|text| (text.as_str(), Mark::Nothing));
        let channels = channels.iter().flat_map(|channels| {
            let ends = channels.end.iter().map(|end| (end.as_str(), Mark::Nothing));
            ends.chain([
                (channels.start.as_str(), Mark::Header { is_channel: false }),
                (channels.channel.as_str(), Mark::Header { is_channel: true }),
            ])
        });
        closes.chain(opens).chain(calls).chain(asides).chain(closed).chain(around).chain(channels)
    }

    /// The style of a call that has no marker and may begin with this character.
    fn bare_call(&self, c: char) -> Option<usize> {
        let begins_line = !self.has_text || self.space.contains('\n');
        if !begins_line {
            return None;
        }
        let forms: &[Form] = match c {
            '{' => &[Form::Object],
            '[' => &[Form::List, Form::Functions],
            _ if self.tools.iter().any(|tool| tool.name.starts_with(c)) => &[Form::Named],
            _ => return None,
        };
        let may_be = |style: &CallStyle| style.open.is_empty() && forms.iter().any(|form| style.forms.contains(form));
        self.dialect.call.iter().position(may_be).filter(|_| !self.tools.is_empty())
    }

    fn begin(&mut self, mark: Mark, text: String) {
        self.state = match mark {
            Mark::Reasoning(pair) => {
                self.space.clear();
                State::Reasoning(pair)
            }
            Mark::Call(style) => State::Calls(Some(style), Box::new(Calls::new(&self.dialect.call[style], &text))),
            Mark::Aside => match self.state {
                State::Reasoning(pair) => State::Aside(pair, text),
                _ => State::Text,
            },
            Mark::Header { is_channel: true } => State::Header { text, prompt: 0 },
            Mark::Header { is_channel: false } => State::Header { text: String::new(), prompt: 0 },
            Mark::Nothing => {
                if matches!(self.state, State::Reasoning(_)) {
                    self.space.clear();
                    self.after = After::Reasoning;
                }
                State::Text
            }
        };
    }

    /// Checks whether the header has ended, and begins its message.
    fn look_for_message(&mut self) {
        let State::Header { text: header, prompt } = &self.state else { return };
        let Some(channels) = &self.dialect.channels else { return };
        if channels.end.iter().any(|end| header.ends_with(end)) {
            self.state = State::Text;
        } else if let Some(head) = header.strip_suffix(channels.message.as_str()) {
            let word = |mark: &str| {
                let (_, rest) = head.split_once(mark)?;
                rest.trim_start().split(|c: char| c.is_whitespace() || c == '<').next().filter(|word| !word.is_empty())
            };
            let recipient = word(&channels.recipient).filter(|recipient| {
                !self.tools.is_empty() && !channels.people.iter().any(|person| person == recipient)
            });
            let is_reasoning = word(&channels.channel).is_some_and(|name| channels.reasoning.iter().any(|r| r == name));
            self.state = match recipient {
                Some(recipient) => {
                    let name = recipient.strip_prefix(channels.namespace.as_str()).unwrap_or(recipient);
                    State::Calls(None, Box::new(Calls::named(name, channels.end.clone())))
                }
                None => {
                    // Messages of the same kind are separated by a line feed.
                    self.space = if self.said[usize::from(is_reasoning)] { "\n".into() } else { String::new() };
                    if is_reasoning { State::Reasoning(0) } else { State::Text }
                }
            };
        } else if header.len() > LONGEST_HEADER {
            let header = header[*prompt..].to_owned();
            self.state = State::Text;
            self.give_back(&header);
        }
    }

    /// Text that turned out to be no call.
    fn give_back(&mut self, text: &str) {
        text.chars().for_each(|c| self.text(c));
    }

    fn give_back_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.give_back(&held);
    }

    /// A character of the content.
    fn text(&mut self, c: char) {
        self.said[0] = true;
        let trims = self.dialect.channels.is_none();
        if trims && c.is_whitespace() {
            self.space.push(c);
            return;
        }
        if !self.has_text && self.after != After::Beginning {
            let kept = self.space.trim_start_matches('\n').len();
            self.space.drain(..self.space.len() - kept);
        }
        self.has_text = true;
        self.content.push_str(&self.space);
        self.content.push(c);
        self.space.clear();
    }

    /// A character of the reasoning.
    fn reasoning(&mut self, c: char) {
        if self.dialect.channels.is_none() && c == '\n' {
            self.space.push(c);
            return;
        }
        if !self.said[1] && self.dialect.channels.is_none() {
            self.space.clear();
        }
        self.said[1] = true;
        let mut delta = std::mem::take(&mut self.space);
        delta.push(c);
        // The content so far comes first; it may have ended the answer.
        self.flush_content();
        if self.stopped().is_some() {
            return;
        }
        match self.events.last_mut() {
            Some(Event::Reasoning(text)) => text.push_str(&delta),
            _ => self.events.push(Event::Reasoning(delta)),
        }
    }

    /// Reports what was found of calls.
    fn report(&mut self, found: Vec<Found>) {
        for found in found {
            let index = self.calls.saturating_sub(1);
            let event = match found {
                Found::Began { id, name } => {
                    self.before_call();
                    if self.stopped().is_some() {
                        return;
                    }
                    self.calls += 1;
                    let id = id.unwrap_or_else(|| self.dialect.made_up_id(self.seed, self.calls as u64 - 1, &name));
                    Event::CallBegan { index: self.calls - 1, id, name }
                }
                Found::Arguments(delta) => match self.events.last_mut() {
                    Some(Event::Arguments { delta: text, .. }) => {
                        text.push_str(&delta);
                        continue;
                    }
                    _ => Event::Arguments { index, delta },
                },
                Found::Ended => Event::CallEnded { index },
                Found::Broken => Event::CallBroken { index },
            };
            self.events.push(event);
        }
    }

    /// Reports the content before a call, without the gap that is written between the two.
    fn before_call(&mut self) {
        if self.has_text {
            let gap = match &self.state {
                State::Calls(Some(style), _) => self.dialect.call[*style].gap.as_str(),
                _ => "",
            };
            let space = std::mem::take(&mut self.space);
            self.content.push_str(space.strip_suffix(gap).unwrap_or(&space));
        }
        self.space.clear();
        self.flush_content();
        let mut rest = String::new();
        self.stop.flush(&mut rest);
        self.content_event(rest);
        self.after = After::Call;
        self.has_text = false;
    }

    fn flush_content(&mut self) {
        let mut ready = String::new();
        self.stop.push(&self.content, &mut ready);
        self.content.clear();
        self.content_event(ready);
        if self.stopped().is_some() {
            self.state = State::Over;
        }
    }

    fn content_event(&mut self, text: String) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Content(before)) => before.push_str(&text),
            _ => self.events.push(Event::Content(text)),
        }
    }
}

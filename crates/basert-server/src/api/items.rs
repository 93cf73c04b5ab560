//! An answer as a list of items, in order of generation: text, reasoning, tool calls.

use crate::model::Part;

/// An item of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Text(String),
    Reasoning(String),
    Call(Call),
}

/// A tool call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// A JSON object, if the call is complete.
    pub arguments: String,
    pub whole: bool,
}

/// A change to an item, which is identified by its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new, empty item.
    Opened(usize),
    /// Text was appended.
    Grew(usize, String),
    /// It is complete.
    Closed(usize),
}

/// The items so far.
#[derive(Debug, Default)]
pub struct Items {
    items: Vec<Item>,
    /// Whether the last one may still grow.
    open: bool,
}

impl Items {
    pub fn all(&self) -> &[Item] {
        &self.items
    }

    /// Adds an event, and returns the changes.
    pub fn push(&mut self, part: Part) -> Vec<Change> {
        let mut changes = Vec::new();
        match part {
            Part::Content(text) => {
                if !(self.open && matches!(self.items.last(), Some(Item::Text(_)))) {
                    self.begin(Item::Text(String::new()), &mut changes);
                }
                self.grow(text, &mut changes);
            }
            Part::Reasoning(text) => {
                if !(self.open && matches!(self.items.last(), Some(Item::Reasoning(_)))) {
                    self.begin(Item::Reasoning(String::new()), &mut changes);
                }
                self.grow(text, &mut changes);
            }
            Part::CallBegan { id, name, .. } => {
                self.begin(Item::Call(Call { id, name, ..Call::default() }), &mut changes);
            }
            Part::Arguments { delta, .. } => self.grow(delta, &mut changes),
            Part::CallEnded { .. } => {
                if let Some(Item::Call(call)) = self.items.last_mut() {
                    call.whole = true;
                }
                changes.extend(self.close());
            }
            Part::CallBroken { .. } => changes.extend(self.close()),
        }
        changes
    }

    /// Completes the last item.
    pub fn close(&mut self) -> Option<Change> {
        std::mem::take(&mut self.open).then(|| Change::Closed(self.items.len() - 1))
    }

    fn begin(&mut self, item: Item, changes: &mut Vec<Change>) {
        changes.extend(self.close());
        self.items.push(item);
        self.open = true;
        changes.push(Change::Opened(self.items.len() - 1));
    }

    fn grow(&mut self, more: String, changes: &mut Vec<Change>) {
        match self.items.last_mut() {
            Some(Item::Text(text) | Item::Reasoning(text)) => text.push_str(&more),
            Some(Item::Call(call)) => call.arguments.push_str(&more),
            None => return,
        }
        changes.push(Change::Grew(self.items.len() - 1, more));
    }

    /// All text, concatenated.
    pub fn text(&self) -> String {
        let text = |item: &Item| if let Item::Text(text) = item { text.clone() } else { String::new() };
        self.items.iter().map(text).collect()
    }

    /// All reasoning, concatenated.
    pub fn reasoning(&self) -> String {
        let reasoning = |item: &Item| if let Item::Reasoning(text) = item { text.clone() } else { String::new() };
        self.items.iter().map(reasoning).collect()
    }

    /// The complete calls.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.items.iter().filter_map(|item| match item {
            Item::Call(call) if call.whole => Some(call),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_follow_each_other() {
        let mut items = Items::default();
        let mut changes = Vec::new();
        for part in [
            Part::Reasoning("hm".into()),
            Part::Reasoning("m".into()),
            Part::Content("I add.".into()),
            Part::CallBegan { index: 0, id: "1".into(), name: "add".into() },
            Part::Arguments { index: 0, delta: "{}".into() },
            Part::CallEnded { index: 0 },
            Part::CallBegan { index: 1, id: "2".into(), name: "add".into() },
            Part::CallBroken { index: 1 },
        ] {
            changes.extend(items.push(part));
        }
        use Change::{Closed, Grew, Opened};
        let grew = |at, text: &str| Grew(at, text.to_owned());
        assert_eq!(
            changes,
            [
                Opened(0),
                grew(0, "hm"),
                grew(0, "m"),
                Closed(0),
                Opened(1),
                grew(1, "I add."),
                Closed(1),
                Opened(2),
                grew(2, "{}"),
                Closed(2),
                Opened(3),
                Closed(3)
            ]
        );
        assert_eq!((items.close(), items.text(), items.reasoning()), (None, "I add.".to_owned(), "hmm".to_owned()));
        assert_eq!(items.calls().map(|call| call.id.as_str()).collect::<Vec<_>>(), ["1"]);
    }
}

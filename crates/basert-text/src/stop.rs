//! Stop texts.

use std::sync::Arc;

/// Lets text through up to the stop text that is complete first, however the text is cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    /// Shared by all copies of this.
    stops: Arc<[String]>,
    /// Text that may be the beginning of a stop text.
    held: String,
    /// The one that came.
    came: Option<String>,
}

impl StopTexts {
    /// Stops at the first of these; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, ..Self::default() }
    }

    /// The stop text that came, if one did. Nothing gets through any more.
    pub fn came(&self) -> Option<&str> {
        self.came.as_deref()
    }

    /// Appends to `out` what of the text, and of what was held before, no stop text can begin in.
    pub fn push(&mut self, text: &str, out: &mut String) {
        if self.came.is_some() {
            return;
        }
        for c in text.chars() {
            self.held.push(c);
            // Of several that are complete now, the one that began first.
            let complete = self.stops.iter().filter(|stop| self.held.ends_with(*stop));
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                out.push_str(&self.held[..self.held.len() - stop.len()]);
                self.came = Some(stop.clone());
                self.held.clear();
                return;
            }
            let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
            let at = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
            out.extend(self.held.drain(..at));
        }
    }

    /// Appends to `out` what was held: no stop text came of it.
    pub fn flush(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

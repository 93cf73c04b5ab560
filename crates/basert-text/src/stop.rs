//! Texts that end an answer.

/// Lets text through up to the stop text that is complete first, however the text is cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop text.
    held: String,
    stopped: bool,
}

impl StopTexts {
    /// Stops at the first of these; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, ..Self::default() }
    }

    /// Whether a stop text came. Nothing gets through any more.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Appends to `out` what of the text, and of what was held before, no stop text can begin in.
    pub fn push(&mut self, text: &str, out: &mut String) {
        if self.stopped {
            return;
        }
        for c in text.chars() {
            self.held.push(c);
            let cut = self.stops.iter().filter_map(|stop| self.held.strip_suffix(stop.as_str())).map(str::len).min();
            if let Some(cut) = cut {
                out.push_str(&self.held[..cut]);
                self.held.clear();
                self.stopped = true;
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

//! Parsers that are not public, for fuzzing.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::auth::Client;
pub use crate::body::values;
use crate::budget::Budget;
use crate::lines;
use crate::work::Work;

/// The longest line, in bytes.
const LIMIT: usize = 1 << 16;

/// Reads the requests of a batch from the text of its file, which is written to `file`, and returns how many there
/// are; none if the file is refused.
///
/// # Panics
/// When the file cannot be written, or a line cannot be found again.
pub fn requests(file: File, text: &[u8]) -> Option<usize> {
    file.set_len(0).and_then(|()| (&file).write_all(text)).expect("the file can be written");
    let hold = Budget::new(1 << 28).hold(Client(0));
    let wanted = Work::new().wanted(Arc::new(AtomicBool::new(false)), None);
    let places = lines::check(&file, "/v1/chat/completions", LIMIT, &wanted, &hold).ok()?;
    let file = Mutex::new(file);
    for place in &places {
        // A number may still be too large for what is read.
        if let Ok(line) = lines::read(&file, *place, &hold) {
            assert!(line.body.starts_with('{'), "a body is an object");
        }
    }
    Some(places.len())
}

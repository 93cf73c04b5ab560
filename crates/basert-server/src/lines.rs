//! The files of batches: a request, or an answer, on each line.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::body;
use crate::budget::Hold;
use crate::error::ApiError;
use crate::work::Wanted;

/// The most requests of a batch.
const MOST_REQUESTS: usize = 50_000;
/// The longest id of one, in bytes.
const LONGEST_ID: usize = 512;

/// Where a line is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    start: u64,
    bytes: usize,
}

/// A request of a batch.
pub struct Line {
    pub custom_id: String,
    /// JSON, as text.
    pub body: String,
}

/// What is wrong with a file: a line, from 1, or something else.
#[derive(Debug)]
pub enum Wrong {
    Line(usize, String),
    All(ApiError),
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<B> {
    custom_id: String,
    method: String,
    url: String,
    body: B,
}

/// A body that is an object, of which nothing is kept but whether it asks for a stream.
struct Glance {
    streams: bool,
}

impl<'de> Deserialize<'de> for Glance {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Glance, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Glance;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Glance, A::Error> {
                let mut streams = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "stream" {
                        streams = map.next_value::<Streams>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Glance { streams })
            }
        }
        deserializer.deserialize_map(Look)
    }
}

/// Whether a value of `stream` asks for one; null does not, and anything else is an error.
struct Streams(bool);

impl<'de> Deserialize<'de> for Streams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Streams, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Streams;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true or false")
            }

            fn visit_bool<E>(self, streams: bool) -> Result<Streams, E> {
                Ok(Streams(streams))
            }

            fn visit_unit<E>(self) -> Result<Streams, E> {
                Ok(Streams(false))
            }
        }
        deserializer.deserialize_any(Look)
    }
}

/// Looks at all lines of a file of requests, one after the other, and says where they are.
pub fn check(file: &File, endpoint: &str, limit: usize, wanted: &Wanted, hold: &Hold) -> Result<Vec<Place>, Wrong> {
    let failed = |error: io::Error| Wrong::All(ApiError::internal(format!("the file cannot be read: {error}")));
    let (mut reader, mut places, mut ids) = (BufReader::new(file), Vec::new(), HashSet::new());
    reader.seek(SeekFrom::Start(0)).map_err(failed)?;
    let (mut text, mut start) = (Vec::new(), 0);
    for number in 1.. {
        let wrong = |message: String| Err(Wrong::Line(number, message));
        wanted.check().map_err(Wrong::All)?;
        text.clear();
        let bytes = (&mut reader).take(limit as u64 + 1).read_until(b'\n', &mut text).map_err(failed)?;
        let place = Place { start, bytes };
        start += bytes as u64;
        if bytes == 0 {
            break;
        }
        if bytes > limit {
            return wrong(format!("more than {limit} bytes"));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line: Written<Glance> = match serde_json::from_slice(&text) {
            Ok(line) => line,
            Err(error) => return wrong(error.to_string()),
        };
        if line.method != "POST" || line.url != endpoint {
            let asked: String = format!("{} {}", line.method, line.url).chars().take(100).collect();
            return wrong(format!("{asked}; all requests have to be POST {endpoint}"));
        }
        if line.body.streams {
            return wrong("answers of a batch are no streams; leave stream out".to_owned());
        }
        if line.custom_id.len() > LONGEST_ID {
            return wrong(format!("a custom_id of more than {LONGEST_ID} bytes"));
        }
        hold.grow(size_of::<Place>()).map_err(Wrong::All)?;
        if let Some(twice) = ids.replace(line.custom_id) {
            return wrong(format!("custom_id '{twice}' is there twice"));
        }
        places.push(place);
        if places.len() > MOST_REQUESTS {
            return wrong(format!("more than {MOST_REQUESTS} requests"));
        }
    }
    if places.is_empty() { Err(Wrong::Line(1, "there are no requests".to_owned())) } else { Ok(places) }
}

/// Reads a line that was looked at before.
pub fn read(file: &Mutex<File>, place: Place, hold: &Hold) -> Result<Line, ApiError> {
    // As it is, and what is made of it.
    hold.grow(place.bytes.saturating_mul(2))?;
    let failed = |error: io::Error| ApiError::internal(format!("the file cannot be read: {error}"));
    let mut text = vec![0; place.bytes];
    {
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(place.start)).and_then(|_| file.read_exact(&mut text)).map_err(failed)?;
    }
    let values = body::values(&text).saturating_mul(body::VALUE);
    hold.grow(values)?;
    let line: Written<Map<String, Value>> =
        serde_json::from_slice(&text).map_err(|error| ApiError::bad(error.to_string()))?;
    let line = Line { custom_id: line.custom_id, body: Value::Object(line.body).to_string() };
    hold.shrink(values);
    Ok(line)
}

/// Counts the answers in a file, and its bytes. What was written of one when the server ended is taken away.
pub fn whole(path: &Path) -> io::Result<(usize, u64)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut reader = BufReader::new(&file);
    let (mut lines, mut end, mut at) = (0, 0, 0);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        for (i, _) in chunk.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            lines += 1;
            end = at + i as u64 + 1;
        }
        let bytes = chunk.len();
        at += bytes as u64;
        reader.consume(bytes);
    }
    file.set_len(end)?;
    Ok((lines, end))
}

//! Downloading one file: in segments, over several connections, resumable at any point.
//!
//! The bytes go to `NAME.partial`, a file of the final size, at their final places. Beside it `NAME.partial.json` says
//! how far each segment has come. A later transfer goes on from there if the announced size and checksum are still the
//! same, and sends the ETag along, so that a server with another version answers with the whole file instead of mixing.
//! The state is written after the bytes it speaks of, so a killed process loses at most the bytes since the last state.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::http::{Failure, HTML_PAGE, Http, Retry, interrupted};
use crate::manifest::write_atomically;

/// How often the state is written.
const SAVE_EVERY: Duration = Duration::from_millis(500);
/// A file has at most this many segments, however large it is.
const MAX_SEGMENTS: u64 = 64;
/// How often a file may change on the server during one transfer.
const MAX_RESTARTS: u32 = 4;

/// The file to be downloaded.
pub(crate) struct Wanted<'a> {
    /// Its name in messages.
    pub name: &'a str,
    pub url: Url,
    pub size: u64,
    /// None where the hub announces none.
    pub digest: Option<&'a Digest>,
}

/// The path of an unfinished download of `file`.
pub(crate) fn partial_path(file: &Path) -> PathBuf {
    with_suffix(file, ".partial")
}

/// The path of the state of an unfinished download of `file`.
pub(crate) fn state_path(file: &Path) -> PathBuf {
    with_suffix(file, ".partial.json")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a partial file to write, made if it is not there. A link in its place is removed: what it leads to is somebody
/// else's.
pub(crate) fn open_partial(partial: &Path) -> Result<File> {
    if fs::symlink_metadata(partial).is_ok_and(|found| found.file_type().is_symlink()) {
        fs::remove_file(partial).map_err(Error::io("replace", partial))?;
    }
    File::options().create(true).truncate(false).write(true).open(partial).map_err(Error::io("write", partial))
}

/// Bytes of `file` that an earlier transfer left and this one would keep.
pub(crate) fn already_done(file: &Path, size: u64, digest: Option<&Digest>) -> u64 {
    State::load(file, size, digest).map_or(0, |s| s.total_done())
}

/// Downloads to the partial file of `file`, all of it; the content is not verified yet.
pub(crate) fn download(http: &Http<'_>, wanted: &Wanted<'_>, file: &Path) -> Result<()> {
    let mut state = State::load(file, wanted.size, wanted.digest)
        .unwrap_or_else(|| State::fresh(wanted, segment_length(wanted.size, http.options.segment_bytes)));
    let partial = partial_path(file);
    let output = open_partial(&partial)?;
    output.set_len(wanted.size).map_err(Error::io("extend", &partial))?;
    for _ in 0..MAX_RESTARTS {
        http.progress.begin(wanted.name, wanted.size);
        http.progress.advance(state.total_done());
        let transfer = Transfer {
            http,
            wanted,
            output: &output,
            partial: &partial,
            state_path: state_path(file),
            shared: Mutex::new(Shared { next: 0, saved: Instant::now(), outcome: Ok(None), state }),
            stop: AtomicBool::new(false),
        };
        state = match transfer.run()? {
            Some(restart) => restart,
            None => {
                output.sync_data().map_err(Error::io("sync", &partial))?;
                http.progress.finish();
                return Ok(());
            }
        };
    }
    let reason = "the file keeps changing on the server".into();
    Err(Error::BadResponse { what: wanted.name.into(), reason })
}

fn segment_length(size: u64, least: u64) -> u64 {
    size.div_ceil(MAX_SEGMENTS).max(least).max(1)
}

/// The content of `NAME.partial.json`.
#[derive(Clone, Serialize, Deserialize)]
struct State {
    size: u64,
    digest: Option<Digest>,
    /// The server's strong validator of the version these bytes belong to.
    etag: Option<String>,
    /// Bytes per segment; the last may be shorter.
    segment: u64,
    /// Bytes done of each segment, from its beginning.
    done: Vec<u64>,
}

impl State {
    fn fresh(wanted: &Wanted<'_>, segment: u64) -> State {
        // At most MAX_SEGMENTS entries, see `segment_length`.
        let count = wanted.size.div_ceil(segment) as usize;
        State { size: wanted.size, digest: wanted.digest.cloned(), etag: None, segment, done: vec![0; count] }
    }

    /// The saved state, if it is one of this very file and fits what is on disk.
    fn load(file: &Path, size: u64, digest: Option<&Digest>) -> Option<State> {
        let state: State = serde_json::from_slice(&fs::read(state_path(file)).ok()?).ok()?;
        let on_disk = fs::metadata(partial_path(file)).ok()?.len();
        let same = state.size == size && state.digest.as_ref() == digest && on_disk == size && state.segment > 0;
        let fits = same
            && state.done.len() as u64 == size.div_ceil(state.segment)
            && state.done.iter().enumerate().all(|(i, done)| *done <= state.length(i));
        fits.then_some(state)
    }

    fn start(&self, index: usize) -> u64 {
        self.segment.saturating_mul(index as u64)
    }

    fn length(&self, index: usize) -> u64 {
        self.segment.min(self.size.saturating_sub(self.start(index)))
    }

    fn total_done(&self) -> u64 {
        self.done.iter().sum()
    }
}

struct Transfer<'a> {
    http: &'a Http<'a>,
    wanted: &'a Wanted<'a>,
    output: &'a File,
    partial: &'a Path,
    state_path: PathBuf,
    shared: Mutex<Shared>,
    /// Set once there is an outcome: the other connections give up.
    stop: AtomicBool,
}

struct Shared {
    state: State,
    /// The first segment that no connection has taken.
    next: usize,
    saved: Instant,
    /// The first error, or the state to start over with.
    outcome: Result<Option<State>>,
}

/// Why a connection stopped in the middle of a segment.
enum Stopped {
    Failure(Failure),
    /// What was received so far is worth nothing: begin again with this state.
    Restart(State),
}

impl<F: Into<Failure>> From<F> for Stopped {
    fn from(failure: F) -> Stopped {
        Stopped::Failure(failure.into())
    }
}

impl Transfer<'_> {
    /// Fetches all segments. `Some` is the state to start over with.
    fn run(self) -> Result<Option<State>> {
        let open = {
            let state = &self.shared().state;
            (0..state.done.len()).filter(|i| state.done.get(*i).copied() < Some(state.length(*i))).count()
        };
        std::thread::scope(|scope| {
            for _ in 0..open.min(self.http.options.connections.max(1)) {
                scope.spawn(|| self.work());
            }
        });
        let shared = self.shared.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        save(&shared.state, &self.state_path)?;
        shared.outcome.map_err(|error| match error {
            Error::Network { what, reason } => {
                Error::Interrupted { file: what, done: shared.state.total_done(), size: self.wanted.size, reason }
            }
            other => other,
        })
    }

    /// One connection: takes segments until none is left.
    fn work(&self) {
        while let Some(index) = self.take() {
            let mut retry = Retry::new(self.http, self.http.options.retries);
            loop {
                let before = self.done(index);
                let stopped = match self.fetch(index) {
                    Ok(()) => break,
                    Err(stopped) => stopped,
                };
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if self.done(index) > before {
                    retry.progressed();
                }
                let outcome = match stopped {
                    Stopped::Restart(state) => Ok(Some(state)),
                    Stopped::Failure(failure) => match retry.pause(failure, &|| self.stop.load(Ordering::Relaxed)) {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    },
                };
                if !self.stop.swap(true, Ordering::Relaxed) {
                    self.shared().outcome = outcome;
                }
                return;
            }
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        // A connection that panicked leaves plain numbers, which are valid at any time.
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn done(&self, index: usize) -> u64 {
        self.shared().state.done.get(index).copied().unwrap_or(0)
    }

    /// The next unfinished segment.
    fn take(&self) -> Option<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let mut shared = self.shared();
        let state = &shared.state;
        let index = (shared.next..state.done.len()).find(|i| state.done.get(*i).copied() < Some(state.length(*i)))?;
        shared.next = index + 1;
        Some(index)
    }

    /// Requests what is missing of a segment and writes it.
    fn fetch(&self, index: usize) -> Result<(), Stopped> {
        let (start, end, etag, whole) = {
            let state = &self.shared().state;
            let from = state.start(index);
            let done = state.done.get(index).copied().unwrap_or(0);
            (from + done, from + state.length(index), state.etag.clone(), state.done.len() == 1)
        };
        let mut headers = HeaderMap::new();
        if !(whole && start == 0) {
            headers.insert(header::RANGE, header_value(&format!("bytes={start}-{}", end - 1))?);
            if let Some(etag) = &etag {
                headers.insert(header::IF_RANGE, header_value(etag)?);
            }
        }
        let response = self.http.get(&self.wanted.url, self.wanted.name, headers)?;
        let text = |name| response.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        if let Some(encoding) = text(header::CONTENT_ENCODING).filter(|e| *e != "identity") {
            return Err(self.bad(format!("it is encoded as {encoding}, which was not asked for")).into());
        }
        if text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html")) {
            return Err(self.bad(HTML_PAGE.into()).into());
        }
        let new_etag = text(header::ETAG).filter(|e| e.starts_with('"')).map(str::to_owned);
        if self.is_other_version(new_etag) || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // Another version than before. What is here may be the old one.
            let segment = self.shared().state.segment;
            return Err(Stopped::Restart(State::fresh(self.wanted, segment)));
        }
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(header::CONTENT_RANGE).unwrap_or("none");
            let expected = [self.wanted.size.to_string(), "*".into()].map(|n| format!("bytes {start}-{}/{n}", end - 1));
            if !expected.iter().any(|e| e == range) {
                let [expected, _] = expected;
                return Err(self.bad(format!("Content-Range is `{range}`, expected `{expected}`")).into());
            }
        } else if !whole {
            // The server knows no ranges: one connection, from the beginning.
            return Err(Stopped::Restart(State::fresh(self.wanted, self.wanted.size)));
        } else {
            if let Some(length) = response.content_length().filter(|l| *l != self.wanted.size) {
                let size = self.wanted.size;
                return Err(self.bad(format!("it has {length} bytes, the listing says {size}")).into());
            }
            if start > 0 {
                self.shared().state.done.fill(0);
                self.http.progress.begin(self.wanted.name, self.wanted.size);
            }
        }
        let start = if response.status() == StatusCode::OK { 0 } else { start };
        self.copy(response, index, start, end)
    }

    /// Whether the ETag differs from that of earlier answers; the first one is remembered.
    fn is_other_version(&self, etag: Option<String>) -> bool {
        let known = &mut self.shared().state.etag;
        match (&known, etag) {
            (Some(known), Some(etag)) => *known != etag,
            (_, None) => false,
            (None, etag) => {
                *known = etag;
                false
            }
        }
    }

    /// Writes `start..end` of the file from the body.
    fn copy(&self, mut body: Response, index: usize, mut start: u64, end: u64) -> Result<(), Stopped> {
        let mut buffer = vec![0; 128 << 10];
        while start < end {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let most = usize::try_from(end - start).unwrap_or(usize::MAX).min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            let n = body.read(room).map_err(|e| interrupted(self.wanted.name, &e))?;
            let chunk = room.get(..n).unwrap_or_default();
            if chunk.is_empty() {
                let reason = format!("the answer ended {} bytes early", end - start);
                return Err(Failure::Transient { error: self.network(reason), wait: None }.into());
            }
            self.output.write_all_at(chunk, start).map_err(Error::io("write", self.partial))?;
            start += n as u64;
            self.http.progress.advance(n as u64);
            self.record(index, n as u64)?;
        }
        Ok(())
    }

    fn record(&self, index: usize, bytes: u64) -> Result<()> {
        let mut shared = self.shared();
        if let Some(done) = shared.state.done.get_mut(index) {
            *done += bytes;
        }
        if shared.saved.elapsed() >= SAVE_EVERY {
            shared.saved = Instant::now();
            save(&shared.state, &self.state_path)?;
        }
        Ok(())
    }

    fn bad(&self, reason: String) -> Error {
        Error::BadResponse { what: self.wanted.name.into(), reason }
    }

    fn network(&self, reason: String) -> Error {
        Error::Network { what: self.wanted.name.into(), reason }
    }
}

fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::BadResponse { what: text.escape_debug().to_string(), reason: "not a header value".into() })
}

fn save(state: &State, path: &Path) -> Result<()> {
    let text = serde_json::to_string(state).expect("a state has only string keys");
    write_atomically(path, text.as_bytes())
}

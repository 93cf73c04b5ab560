//! Responses that are stored in memory, for requests that continue them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::Value;

use crate::auth::Client;
use crate::error::ApiError;

/// A response, and all messages of the conversation up to its end.
pub struct Answer {
    /// Its client, whose batches are the same.
    client: u64,
    pub response: Value,
    pub messages: Vec<Value>,
    /// What it takes of memory.
    pub bytes: usize,
}

/// Stored responses, within a limit of bytes. When it is exceeded, the client with the most loses its oldest one.
pub struct Kept {
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    answers: HashMap<String, Arc<Answer>>,
    clients: HashMap<u64, Shelf>,
    bytes: usize,
}

/// Those of a client, the oldest first.
#[derive(Default)]
struct Shelf {
    order: VecDeque<String>,
    bytes: usize,
}

impl Kept {
    pub fn new(most: usize) -> Kept {
        Kept { most, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: &str, client: Client) -> Result<Arc<Answer>, ApiError> {
        let found = self.lock().answers.get(id).filter(|answer| answer.client == client.account()).cloned();
        let none = || ApiError::new(StatusCode::NOT_FOUND, format!("there is no response '{id}', or no longer"));
        found.ok_or_else(none)
    }

    pub fn keep(&self, id: &str, client: Client, response: Value, messages: Vec<Value>) {
        let client = client.account();
        let bytes = id.len() + size(&response) + messages.iter().map(size).sum::<usize>();
        let mut inner = self.lock();
        inner.bytes += bytes;
        inner.answers.insert(id.to_owned(), Arc::new(Answer { client, response, messages, bytes }));
        let shelf = inner.clients.entry(client).or_default();
        shelf.bytes += bytes;
        shelf.order.push_back(id.to_owned());
        while inner.bytes > self.most {
            let most = inner.clients.values_mut().max_by_key(|shelf| shelf.bytes);
            let Some(oldest) = most.and_then(|shelf| shelf.order.front().cloned()) else { break };
            inner.forget(&oldest);
        }
    }

    pub fn remove(&self, id: &str) {
        self.lock().forget(id);
    }
}

impl Inner {
    fn forget(&mut self, id: &str) {
        let Some(answer) = self.answers.remove(id) else { return };
        self.bytes -= answer.bytes;
        if let Some(shelf) = self.clients.get_mut(&answer.client) {
            shelf.bytes -= answer.bytes;
            shelf.order.retain(|other| other != id);
            if shelf.order.is_empty() {
                self.clients.remove(&answer.client);
            }
        }
    }
}

/// What a value takes of memory, in bytes.
fn size(value: &Value) -> usize {
    /// A name's place in an object: its text, its hash, and where it is found.
    const NAME: usize = size_of::<String>() + 3 * size_of::<usize>();
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.capacity(),
            Value::Array(list) => {
                let spare = list.capacity() - list.len();
                spare * size_of::<Value>() + list.iter().map(size).sum::<usize>()
            }
            Value::Object(map) => map.iter().map(|(name, value)| NAME + name.capacity() + size(value)).sum(),
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_that_keeps_much_loses_its_own() {
        let kept = Kept::new(100_000);
        kept.keep("small", Client(1), json!("x"), vec![]);
        for i in 0..20 {
            kept.keep(&format!("large {i}"), Client(2), json!("x".repeat(20_000)), vec![json!({ "a": [[]] })]);
        }
        assert!(kept.get("small", Client(1)).is_ok());
        assert!(kept.get("small", Client(2)).is_err());
        assert!(kept.get("large 15", Client(2)).is_err());
        assert!(kept.get("large 16", Client(2)).is_ok() && kept.get("large 19", Client(2)).is_ok());
        kept.remove("large 19");
        kept.remove("large 19");
        assert!(kept.get("large 19", Client(2)).is_err());
        let inner = kept.lock();
        let all = inner.answers.values().map(|answer| answer.bytes).sum::<usize>();
        assert_eq!((inner.bytes, inner.clients.len()), (all, 2));
    }

    #[test]
    fn values_weigh_what_they_take_and_not_what_they_are_as_text() {
        let empty: Vec<Value> = (0..1000).map(|_| json!([])).collect();
        assert!(size(&json!(empty)) >= 1000 * size_of::<Value>());
        assert!(size(&json!({ "name": "x".repeat(1000) })) > 1000);
    }
}

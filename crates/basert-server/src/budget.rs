//! The memory of requests, beside that of models: one account for all of them, with a share for each client.
//!
//! Counted are bytes of bodies as they arrive, values of the JSON in them, lines and answers of batches, and log
//! probabilities that are kept for whole answers. A [`Hold`] releases what it took when it is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;

use crate::auth::Client;
use crate::error::ApiError;

/// Seconds after which a request for which there was no room is worth another try.
const AGAIN: u64 = 2;

/// The account.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    held: usize,
    /// By those clients that hold anything.
    clients: HashMap<u64, usize>,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(total: usize) -> Arc<Budget> {
        Arc::new(Budget { total, ledger: Mutex::default() })
    }

    /// Limit of one client: as much is left for others.
    pub fn share(&self) -> usize {
        self.total / 2
    }

    /// A hold of a client, of nothing yet.
    pub fn hold(self: &Arc<Self>, client: Client) -> Hold {
        Hold { budget: self.clone(), client: client.account(), bytes: AtomicUsize::new(0) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request holds, or something else that a client left.
#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    client: u64,
    bytes: AtomicUsize,
}

impl Hold {
    /// Takes more.
    ///
    /// # Errors
    /// 413 if that could never be had, 429 if the client holds too much already, 503 if all do.
    pub fn grow(&self, bytes: usize) -> Result<(), ApiError> {
        let share = self.budget.share();
        let mut ledger = self.budget.ledger();
        let own = ledger.clients.get(&self.client).copied().unwrap_or(0);
        if self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > share {
            let message = format!("this takes more memory than the {share} bytes that requests of one client may take");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let (status, whose) = if own.saturating_add(bytes) > share {
            (StatusCode::TOO_MANY_REQUESTS, "this client's requests take")
        } else if ledger.held.saturating_add(bytes) > self.budget.total {
            (StatusCode::SERVICE_UNAVAILABLE, "requests take")
        } else {
            ledger.held += bytes;
            *ledger.clients.entry(self.client).or_default() += bytes;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        };
        let message = format!("{whose} all the memory that there is for them; try again when some have ended");
        Err(ApiError::new(status, message).with_code("overloaded").again_after(AGAIN))
    }

    /// Gives some back.
    pub fn shrink(&self, bytes: usize) {
        let mut ledger = self.budget.ledger();
        let bytes = bytes.min(self.bytes.load(Ordering::Relaxed));
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        ledger.held -= bytes;
        if let Some(own) = ledger.clients.get_mut(&self.client) {
            *own -= bytes;
            if *own == 0 {
                ledger.clients.remove(&self.client);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_share_and_all_of_them_the_total() {
        let budget = Budget::new(100);
        let status = |result: Result<(), ApiError>| result.map_err(|error| error.status.as_u16());
        let [one, other, third] = [1, 1, 2].map(|client| budget.hold(Client(client)));
        assert_eq!(status(one.grow(51)), Err(413), "never");
        assert_eq!(status(one.grow(30)), Ok(()));
        assert_eq!(status(one.grow(21)), Err(413), "never, with what it has");
        assert_eq!(status(other.grow(30)), Err(429), "the client's share");
        assert_eq!(status(budget.hold(Client(1).batch()).grow(30)), Err(429), "batches are its own too");
        assert_eq!(status(third.grow(50)), Ok(()), "another's");
        assert_eq!(status(budget.hold(Client(3)).grow(21)), Err(503), "all");
        drop(one);
        assert_eq!(status(other.grow(50)), Ok(()));
        third.shrink(20);
        assert_eq!(status(budget.hold(Client(3)).grow(20)), Ok(()));
        drop((other, third));
        let ledger = budget.ledger();
        assert_eq!((ledger.held, ledger.clients.len()), (0, 0));
    }

    #[test]
    fn what_is_refused_says_when_to_come_back_unless_that_is_never() {
        let budget = Budget::new(100);
        let hold = budget.hold(Client(1));
        assert_eq!(hold.grow(60).unwrap_err().again_after, None);
        hold.grow(50).unwrap();
        assert_eq!(budget.hold(Client(1)).grow(10).unwrap_err().again_after, Some(AGAIN));
    }
}

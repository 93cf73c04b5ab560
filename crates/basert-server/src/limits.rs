//! Rate limits of clients.

use std::num::NonZeroU32;

use axum::http::StatusCode;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::error::ApiError;

type Limiter = RateLimiter<u64, HashMapStateStore<u64>, DefaultClock>;

/// Wrong keys that an address may give a minute, where nothing is said about its requests.
const WRONG_KEYS: NonZeroU32 = NonZeroU32::new(60).unwrap();

/// A limit for each client, which is full again after a minute.
pub struct Limits {
    limiter: Option<Limiter>,
    wrong_keys: Limiter,
}

impl Limits {
    pub fn new(per_minute: Option<u32>) -> Limits {
        let quota = per_minute.and_then(NonZeroU32::new).map(Quota::per_minute);
        let wrong_keys = RateLimiter::hashmap(quota.unwrap_or(Quota::per_minute(WRONG_KEYS)));
        Limits { limiter: quota.map(RateLimiter::hashmap), wrong_keys }
    }

    /// Counts a request, or refuses it.
    pub fn check(&self, client: u64) -> Result<(), ApiError> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| count(limiter, client, "requests"))
    }

    /// Counts a wrong key from an address, or refuses to answer to it.
    pub fn wrong_key(&self, address: u64) -> Result<(), ApiError> {
        count(&self.wrong_keys, address, "wrong keys")
    }

    /// Forgets clients that did not ask for a while.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
        }
        self.wrong_keys.retain_recent();
    }
}

fn count(limiter: &Limiter, by: u64, what: &str) -> Result<(), ApiError> {
    limiter.check_key(&by).map_err(|until| {
        let seconds = until.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
        let message = format!("too many {what}; try again in {seconds} s");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded").again_after(seconds)
    })
}

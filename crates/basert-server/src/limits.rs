//! How many requests a client may make.

use std::num::NonZeroU32;

use axum::http::StatusCode;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::error::ApiError;

/// A limit for each client, which is full again after a minute.
pub struct Limits {
    limiter: Option<RateLimiter<u64, HashMapStateStore<u64>, DefaultClock>>,
}

impl Limits {
    pub fn new(per_minute: Option<u32>) -> Limits {
        let quota = per_minute.and_then(NonZeroU32::new).map(Quota::per_minute);
        Limits { limiter: quota.map(RateLimiter::hashmap) }
    }

    /// Counts a request, or refuses it.
    pub fn check(&self, client: u64) -> Result<(), ApiError> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(&client).map_err(|until| {
            let seconds = until.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
            let message = format!("too many requests; try again in {seconds} s");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("rate_limit_exceeded")
        })
    }

    /// Forgets clients that did not ask for a while.
    pub fn tidy(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
        }
    }
}

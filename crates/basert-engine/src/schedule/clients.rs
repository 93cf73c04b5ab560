//! Fairness between clients: how much each was served.
//!
//! Each client has a counter of tokens computed for it. The counter of a client that was idle is raised to the least of
//! the active ones, so that idle time gives no credit (Sheng et al. 2024, "Fairness in Serving Large Language Models",
//! arXiv 2401.00588).

use std::collections::HashMap;

/// The counters of the clients that have requests.
#[derive(Debug, Default)]
pub(super) struct Clients {
    active: HashMap<u64, Client>,
}

#[derive(Debug)]
struct Client {
    served: u64,
    requests: usize,
}

impl Clients {
    /// Records that a request of the client begins.
    pub fn enter(&mut self, client: u64) {
        let least = self.active.values().map(|client| client.served).min().unwrap_or(0);
        self.active.entry(client).or_insert(Client { served: least, requests: 0 }).requests += 1;
    }

    /// Records that a request of the client ended.
    pub fn leave(&mut self, client: u64) {
        if let Some(entry) = self.active.get_mut(&client) {
            entry.requests -= 1;
            if entry.requests == 0 {
                self.active.remove(&client);
            }
        }
    }

    /// Adds tokens that were computed for the client.
    pub fn charge(&mut self, client: u64, tokens: usize) {
        if let Some(entry) = self.active.get_mut(&client) {
            entry.served += tokens as u64;
        }
    }

    /// The client's counter.
    pub fn served(&self, client: u64) -> u64 {
        self.active.get(&client).map_or(0, |client| client.served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_saves_up_while_away() {
        let mut clients = Clients::default();
        clients.enter(1);
        clients.charge(1, 1000);
        clients.enter(2);
        assert_eq!(clients.served(2), 1000);
        clients.charge(2, 5);
        clients.enter(3);
        assert_eq!(clients.served(3), 1000);
        clients.enter(2);
        clients.leave(2);
        assert_eq!(clients.served(2), 1005);
        clients.leave(2);
        clients.leave(1);
        clients.leave(3);
        assert!(clients.active.is_empty());
    }
}

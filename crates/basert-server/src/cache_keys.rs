//! `prompt_cache_key`: clients of different API keys that send the same one share the cached prefixes of those requests.
//!
//! Programs send such a key of their own accord, often one for each conversation, and nobody else sends that one. Their
//! prompts stay with those of their API key, so that conversations find the instructions that they have in common. A
//! key is shared from when a second client sends it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// The most keys that are remembered.
const MOST: usize = 16_384;
/// A bit of the salts of shared keys. That of an API key does not have it, so no shared key has the salt of one.
const SHARED: u64 = 1 << 63;

/// The keys that clients have sent, by the salt that they stand for.
#[derive(Debug, Default)]
pub struct CacheKeys(Mutex<HashMap<u64, Senders>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Senders {
    One(u64),
    Several,
}

impl CacheKeys {
    /// Notes that a client sends this key. If others have sent it, too, returns the salt of all their prompts with it.
    pub fn shared(&self, client: u64, key: &str) -> Option<u64> {
        let digest = Sha256::digest(key.as_bytes());
        let salt = digest.iter().take(8).fold(0, |salt, byte| salt << 8 | u64::from(*byte)) | SHARED;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&salt) {
            known.retain(|_, senders| *senders == Senders::Several);
            // So many can only be made up.
            if known.len() >= MOST {
                known.clear();
            }
        }
        let senders = known.entry(salt).or_insert(Senders::One(client));
        if *senders != Senders::One(client) {
            *senders = Senders::Several;
        }
        (*senders == Senders::Several).then_some(salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shared_by_those_who_send_it_and_nobody_else() {
        let keys = CacheKeys::default();
        assert_eq!([keys.shared(1, "team"), keys.shared(1, "team"), keys.shared(2, "other")], [None; 3]);
        let salt = keys.shared(2, "team");
        assert!(salt.is_some_and(|salt| salt & SHARED != 0), "{salt:?}");
        assert_eq!([keys.shared(1, "team"), keys.shared(3, "team")], [salt; 2]);
        assert_ne!(keys.shared(1, "other"), salt);
        assert_eq!(keys.shared(2, "Team"), None);
    }

    #[test]
    fn keys_that_nobody_shares_are_forgotten_when_there_are_many() {
        let keys = CacheKeys::default();
        keys.shared(1, "team");
        let salt = keys.shared(2, "team");
        for i in 0..3 * MOST {
            assert_eq!(keys.shared(3, &i.to_string()), None);
        }
        assert!(keys.0.lock().unwrap().len() <= MOST);
        assert_eq!(keys.shared(1, "team"), salt);
    }
}

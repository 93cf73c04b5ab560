//! Room for answers that run or wait, of which no client can take all.
//!
//! There is room for twice as many answers as one client may have. A client may take no more than it leaves free, so
//! the next client always finds room, and gets more of it as answers of others end (Choudhury and Hahne 1998, "Dynamic
//! Queue Length Thresholds for Shared-Memory Packet Switches").

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many places each client has.
pub struct Room {
    /// The most answers of one client.
    most: usize,
    held: Mutex<HashMap<u64, usize>>,
}

/// A place for one answer, free again when this is dropped.
pub struct Place {
    room: Arc<Room>,
    client: u64,
}

impl Room {
    pub fn new(most: usize) -> Arc<Room> {
        Arc::new(Room { most, held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes places for a client's answers, if it may have them now.
    pub fn enter(self: &Arc<Self>, client: u64, answers: usize) -> Option<Vec<Place>> {
        let mut held = self.held();
        let own = held.get(&client).copied().unwrap_or(0) + answers;
        let left = (2 * self.most).checked_sub(held.values().sum::<usize>() + answers)?;
        if own > self.most.min(left.max(1)) {
            return None;
        }
        held.insert(client, own);
        Some((0..answers).map(|_| Place { room: self.clone(), client }).collect())
    }

    /// Answers of all clients.
    pub fn taken(&self) -> usize {
        self.held().values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.room.held();
        if let Some(answers) = held.get_mut(&self.client) {
            *answers -= 1;
            if *answers == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_all_that_may_be_taken_leaves_room_for_others() {
        for most in [1, 2, 16, 272] {
            let room = Room::new(most);
            assert!(room.enter(1, most + 1).is_none());
            let mut first: Vec<Place> = (0..most).flat_map(|_| room.enter(1, 1).unwrap()).collect();
            assert!(room.enter(1, 1).is_none(), "{most} are the most");
            let second: Vec<Place> = std::iter::from_fn(|| room.enter(2, 1)).flatten().collect();
            assert!(second.len() >= most.div_ceil(2), "{} of {most}", second.len());
            assert!(most < 4 || room.enter(3, 1).is_some());
            // What the first one gives back is for others.
            first.pop();
            assert!(room.enter(4, 1).is_some());
            drop((first, second));
            assert_eq!(room.taken(), 0);
        }
    }
}

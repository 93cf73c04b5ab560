//! The limit on connections. When it is reached, the connection that has been idle for longest is closed: of the same
//! address if that has its share, else of all.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Descriptors that are left for files, and for the system's libraries.
const RESERVED: usize = 64;

/// The connections that there are.
pub struct Connections {
    most: usize,
    /// Of one address.
    each: usize,
    inner: Mutex<Inner>,
    /// One has ended, or waits for a request.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    all: usize,
    addresses: HashMap<IpAddr, usize>,
    /// Those that wait for a request, by when they began to.
    idle: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    next: u64,
}

/// A connection, as long as it is there.
pub struct Connection {
    connections: Arc<Connections>,
    address: IpAddr,
    /// Its place among those that wait for a request.
    idle: Mutex<Option<u64>>,
    close: Arc<Notify>,
}

impl Connections {
    /// As many as are wanted and the system allows.
    pub fn new(wanted: usize) -> Arc<Connections> {
        let most = descriptors(wanted + RESERVED)
            .map_or(wanted, |descriptors| wanted.min(descriptors.saturating_sub(RESERVED).max(descriptors / 2)).max(1));
        Arc::new(Connections { most, each: most.div_ceil(2), inner: Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another one may be accepted.
    pub async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().all < self.most {
                return;
            }
            self.close_idle(None);
            changed.await;
        }
    }

    /// Counts a connection. None if its address has its share, and none of its others waits for a request.
    pub fn open(self: &Arc<Self>, peer: SocketAddr) -> Option<Arc<Connection>> {
        let address = peer.ip().to_canonical();
        let own = self.lock().addresses.get(&address).copied().unwrap_or(0);
        if own >= self.each && !self.close_idle(Some(address)) {
            return None;
        }
        let mut inner = self.lock();
        inner.all += 1;
        *inner.addresses.entry(address).or_default() += 1;
        drop(inner);
        let connection =
            Connection { connections: self.clone(), address, idle: Mutex::default(), close: Arc::new(Notify::new()) };
        connection.waits();
        Some(Arc::new(connection))
    }

    /// Closes the connection that has waited longest for a request, of this address or of all. Whether there is one.
    pub fn close_idle(&self, address: Option<IpAddr>) -> bool {
        let mut inner = self.lock();
        let found = inner.idle.iter().find(|(_, (of, _))| address.is_none_or(|address| address == *of));
        let Some(number) = found.map(|(&number, _)| number) else { return false };
        if let Some((_, close)) = inner.idle.remove(&number) {
            close.notify_one();
        }
        true
    }
}

impl Connection {
    fn place(&self) -> MutexGuard<'_, Option<u64>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come.
    pub fn works(&self) {
        if let Some(number) = self.place().take() {
            self.connections.lock().idle.remove(&number);
        }
    }

    /// It waits for one.
    pub fn waits(&self) {
        let mut inner = self.connections.lock();
        let number = inner.next;
        inner.next += 1;
        inner.idle.insert(number, (self.address, self.close.clone()));
        drop(inner);
        if let Some(before) = self.place().replace(number) {
            self.connections.lock().idle.remove(&before);
        }
        self.connections.changed.notify_waiters();
    }

    /// Waits until it has to make room.
    pub async fn closed(&self) {
        self.close.notified().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.works();
        let mut inner = self.connections.lock();
        inner.all -= 1;
        if let Some(own) = inner.addresses.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                inner.addresses.remove(&self.address);
            }
        }
        drop(inner);
        self.connections.changed.notify_waiters();
    }
}

/// How many descriptors the system allows, after it was asked for as many as are wanted.
#[cfg(unix)]
fn descriptors(wanted: usize) -> Option<usize> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let current = limit.current?;
    let more = limit.maximum.unwrap_or(u64::MAX).min(wanted as u64);
    if current < more {
        limit.current = Some(more);
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return Some(more as usize);
        }
    }
    usize::try_from(current).ok()
}

#[cfg(not(unix))]
fn descriptors(_: usize) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_longest_make_room() {
        let connections = Arc::new(Connections { most: 4, each: 2, inner: Mutex::default(), changed: Notify::new() });
        let open = |host: u8| connections.open(SocketAddr::from(([10, 0, 0, host], 1)));
        let is_closed = |connection: &Connection| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let closed = async { tokio::time::timeout(std::time::Duration::ZERO, connection.closed()).await.is_ok() };
            runtime.block_on(closed)
        };
        let [first, second] = [open(1).unwrap(), open(1).unwrap()];
        first.works();
        // The address has its share: the one that waits makes room.
        let third = open(1).unwrap();
        assert!(is_closed(&second) && !is_closed(&first) && !is_closed(&third));
        drop(second);
        third.works();
        assert!(open(1).is_none(), "none waits");
        let other = open(2).unwrap();
        first.waits();
        assert!(connections.close_idle(None));
        assert!(is_closed(&other), "it has waited longer");
        drop((first, third, other));
        let inner = connections.lock();
        assert_eq!((inner.all, inner.addresses.len(), inner.idle.len()), (0, 0, 0));
    }
}

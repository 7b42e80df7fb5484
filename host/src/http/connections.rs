//! How many connections there may be, in all and of one network.
//!
//! **Problem.** Each connection costs a file descriptor and memory, and one client must not take all that there are.
//!
//! **Mechanism.** A place for a connection is waited for before it is accepted, so that in all past the limit clients wait in the
//! kernel's queue. Who they are is known only then: past the limit of its network one is closed at once, since a
//! client that waits would hold up those behind it. A network is an IPv4 address or the 64 bits that a site with IPv6
//! has at least: the rest of such an address is the client's to choose.
//!
//! **Limits.** `connections` and `connections_per_address` of [`HttpLimits`]. Behind a reverse proxy all clients have its address:
//! the latter then bounds the proxy, which has to count its own clients, and should be as large as the former.
//!
//! **Cost.** A short lock and an entry of a table when a connection begins and when it ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::HttpLimits;

/// The connections of one listener.
pub struct Connections {
    room: Semaphore,
    per_network: usize,
    open: Mutex<HashMap<Ipv6Addr, usize>>,
    refused: AtomicU64,
}

/// The place of a connection, until it is dropped.
pub(super) struct Place {
    of: Arc<Connections>,
    network: Ipv6Addr,
}

impl Connections {
    /// None so far.
    pub fn new(limits: &HttpLimits) -> Arc<Self> {
        Arc::new(Self {
            room: Semaphore::new(limits.connections),
            per_network: limits.connections_per_address,
            open: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// How many are open.
    pub fn open(&self) -> u64 {
        self.table().values().sum::<usize>() as u64
    }

    /// How many were closed at once, as there were too many of their networks.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Waits until there may be one more.
    pub(super) async fn room(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.room.acquire().await.ok()
    }

    /// A place in that room for a client at this address, unless there are too many of its network.
    pub(super) fn place(
        self: &Arc<Self>,
        room: Option<SemaphorePermit<'_>>,
        address: IpAddr,
    ) -> Option<Place> {
        let network = network(address);
        let mut table = self.table();
        let open = table.entry(network).or_default();
        if *open >= self.per_network {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *open += 1;
        // The place gives it back.
        if let Some(room) = room {
            room.forget();
        }
        Some(Place { of: self.clone(), network })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Ipv6Addr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.of.table().entry(self.network) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
        self.of.room.add_permits(1);
    }
}

/// Whose an address is.
fn network(address: IpAddr) -> Ipv6Addr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64),
        IpAddr::V4(address) => address.to_ipv6_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(connections: usize, connections_per_address: usize) -> Arc<Connections> {
        let limits = HttpLimits { connections, connections_per_address, ..HttpLimits::default() };
        Connections::new(&limits)
    }

    #[tokio::test]
    async fn a_network_has_its_places_and_no_more_until_one_is_given_back() {
        let connections = connections(10, 2);
        let place = async |address: &str| {
            connections.place(connections.room().await, address.parse().unwrap())
        };
        let first = place("192.0.2.1").await;
        assert!(first.is_some());
        // The same address as a socket of both versions has it.
        let second = place("::ffff:192.0.2.1").await;
        assert!(second.is_some());
        assert!(place("192.0.2.1").await.is_none());
        let six = (place("2001:db8::1").await, place("2001:db8::ffff:0:0:1").await);
        assert!(six.0.is_some() && six.1.is_some());
        assert!(place("2001:db8::2").await.is_none(), "of the same 64 bits");
        assert!(place("2001:db8:0:1::2").await.is_some());
        assert_eq!((connections.open(), connections.refused()), (4, 2));
        drop(first);
        assert!(place("192.0.2.1").await.is_some());
        drop((second, six));
        assert_eq!(connections.open(), 0);
        assert!(connections.table().is_empty());
        assert_eq!(connections.room.available_permits(), 10);
    }
}

//! Connection permits: a limit in total and a limit per address.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

#[derive(Debug)]
pub(super) struct ConnectionPermits {
    total_max: usize,
    per_address_max: usize,
    counts: Mutex<PermitCounts>,
}

#[derive(Debug, Default)]
struct PermitCounts {
    total: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A permit for one connection; released when dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    permits: Arc<ConnectionPermits>,
    /// The address that it counts for; none for a trusted proxy before its first request.
    address: Option<IpAddr>,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PermitError {
    /// The total limit is reached.
    Total,
    /// The limit of this address is reached.
    PerAddress,
}

impl ConnectionPermits {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, counts: Mutex::default() })
    }

    /// Acquires a permit that counts for `address`, if there is one.
    pub(super) fn acquire(self: &Arc<Self>, address: Option<IpAddr>) -> Result<ConnectionPermit, PermitError> {
        let mut taken = self.counts.lock();
        // Check the address first: an address that uses all permits gets the error for its own limit.
        let own = address.map_or(0, |address| taken.of(address));
        if own >= self.per_address_max {
            return Err(PermitError::PerAddress);
        }
        if taken.total >= self.total_max {
            return Err(PermitError::Total);
        }
        taken.total += 1;
        taken.add(address);
        drop(taken);
        Ok(ConnectionPermit { permits: Arc::clone(self), address })
    }
}

impl PermitCounts {
    fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    fn add(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            *self.by_address.entry(address).or_default() += 1;
        }
    }

    fn remove(&mut self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        match self.of(address) {
            0 | 1 => drop(self.by_address.remove(&address)),
            taken => drop(self.by_address.insert(address, taken - 1)),
        }
    }
}

impl ConnectionPermit {
    /// Counts the permit for `address` from now on. At the limit of that address nothing changes.
    pub(super) fn assign_to(&mut self, address: IpAddr) -> Result<(), PermitError> {
        if self.address == Some(address) {
            return Ok(());
        }
        let mut taken = self.permits.counts.lock();
        if taken.of(address) >= self.permits.per_address_max {
            return Err(PermitError::PerAddress);
        }
        taken.remove(self.address);
        taken.add(Some(address));
        drop(taken);
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut taken = self.permits.counts.lock();
        taken.total -= 1;
        taken.remove(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)));
    const TWO: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)));

    #[test]
    fn permits_are_limited_in_total_and_per_address_and_released() {
        let permits = ConnectionPermits::new(3, 2);
        let held = [permits.acquire(ONE).unwrap(), permits.acquire(ONE).unwrap()];
        assert_eq!(permits.acquire(ONE).unwrap_err(), PermitError::PerAddress, "two for one address");
        let third = permits.acquire(TWO).unwrap();
        assert_eq!(permits.acquire(TWO).unwrap_err(), PermitError::Total, "three in all");
        assert_eq!(
            permits.acquire(ONE).unwrap_err(),
            PermitError::PerAddress,
            "an address with all its permits gets this reason even then"
        );
        drop(third);
        drop(held);
        assert!(permits.acquire(TWO).is_ok());
        assert!(permits.counts.lock().by_address.is_empty(), "addresses that left are forgotten");
    }

    #[test]
    fn a_proxy_connection_counts_for_its_client() {
        let permits = ConnectionPermits::new(10, 1);
        let mut first = permits.acquire(None).unwrap();
        let mut second = permits.acquire(None).unwrap();
        first.assign_to(ONE.unwrap()).unwrap();
        first.assign_to(ONE.unwrap()).unwrap();
        assert_eq!(second.assign_to(ONE.unwrap()), Err(PermitError::PerAddress));
        second.assign_to(TWO.unwrap()).unwrap();
        assert_eq!(first.assign_to(TWO.unwrap()), Err(PermitError::PerAddress));
        drop(first);
        second.assign_to(ONE.unwrap()).unwrap();
        drop(second);
        let taken = permits.counts.lock();
        assert_eq!((taken.total, taken.by_address.len()), (0, 0));
    }
}

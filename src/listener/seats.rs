//! Who may connect: a number of seats in all, and a number for each address. Counts; knows nothing of sockets.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug)]
pub(super) struct Seats {
    total_max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A seat; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    /// Whose share it counts in; a trusted proxy's connection is nobody's until it brings a request.
    address: Option<IpAddr>,
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// This address has its share.
    Share,
}

impl Seats {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, taken: Mutex::default() })
    }

    /// A seat in the share of `address`, or in nobody's.
    pub(super) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Seat, Full> {
        let mut taken = self.taken();
        // The share is looked at first: an address that fills everything is told that it is the one who does.
        let own = address.map_or(0, |address| taken.of(address));
        if own >= self.per_address_max {
            return Err(Full::Share);
        }
        if taken.total >= self.total_max {
            return Err(Full::All);
        }
        taken.total += 1;
        taken.enter(address);
        drop(taken);
        Ok(Seat { seats: Arc::clone(self), address })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    fn enter(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            *self.by_address.entry(address).or_default() += 1;
        }
    }

    fn leave(&mut self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        match self.of(address) {
            0 | 1 => drop(self.by_address.remove(&address)),
            taken => drop(self.by_address.insert(address, taken - 1)),
        }
    }
}

impl Seat {
    /// Counts the seat in the share of `address` from here on. Where that is full, it stays in the share that it was in.
    pub(super) fn count_for(&mut self, address: IpAddr) -> Result<(), Full> {
        if self.address == Some(address) {
            return Ok(());
        }
        let mut taken = self.seats.taken();
        if taken.of(address) >= self.seats.per_address_max {
            return Err(Full::Share);
        }
        taken.leave(self.address);
        taken.enter(Some(address));
        drop(taken);
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        taken.total -= 1;
        taken.leave(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)));
    const TWO: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)));

    #[test]
    fn seats_are_limited_in_all_and_for_each_address_and_come_back() {
        let seats = Seats::new(3, 2);
        let held = [seats.take(ONE).unwrap(), seats.take(ONE).unwrap()];
        assert_eq!(seats.take(ONE).unwrap_err(), Full::Share, "two for one address");
        let third = seats.take(TWO).unwrap();
        assert_eq!(seats.take(TWO).unwrap_err(), Full::All, "three in all");
        assert_eq!(seats.take(ONE).unwrap_err(), Full::Share, "whoever has its share is told so even then");
        drop(third);
        drop(held);
        assert!(seats.take(TWO).is_ok());
        assert!(seats.taken().by_address.is_empty(), "addresses that left are forgotten");
    }

    #[test]
    fn a_proxys_seat_moves_to_the_share_of_whom_it_serves() {
        let seats = Seats::new(10, 1);
        let mut first = seats.take(None).unwrap();
        let mut second = seats.take(None).unwrap();
        first.count_for(ONE.unwrap()).unwrap();
        first.count_for(ONE.unwrap()).unwrap();
        assert_eq!(second.count_for(ONE.unwrap()), Err(Full::Share));
        second.count_for(TWO.unwrap()).unwrap();
        assert_eq!(first.count_for(TWO.unwrap()), Err(Full::Share));
        drop(first);
        second.count_for(ONE.unwrap()).unwrap();
        drop(second);
        let taken = seats.taken();
        assert_eq!((taken.total, taken.by_address.len()), (0, 0));
    }
}

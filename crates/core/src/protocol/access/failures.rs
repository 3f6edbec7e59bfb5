//! Counts failed authentications per client address, in bounded memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::model::labels::labels;

labels! {
    /// Why an authentication failed, for the metrics.
    pub enum AuthenticationFailure {
        /// The credential is in a wrong place or form.
        Malformed = "malformed",
        Missing = "missing",
        Revoked = "revoked",
        /// The ticket is unknown, expired or used.
        Ticket = "ticket",
        TokenExpired = "token_expired",
        TokenInvalid = "token_invalid",
    }
}

/// An address is flagged above this number of failures within a minute.
pub const FLAGGED_ABOVE: u32 = 50;
/// The time over which failures are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are counted at the same time. Beyond it a new address replaces the one with the fewest failures,
/// so that the counts of frequent offenders stay.
const ADDRESSES_MAX: usize = 4_096;

/// The failures of one address, after one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureWindow {
    /// The failures within the present window.
    pub count: u32,
    /// Whether this failure flagged the address.
    pub newly_flagged: bool,
}

/// Failed authentications per address. IPv6 addresses count by their /64 network.
#[derive(Debug, Clone, Default)]
pub struct FailureCounter {
    counts: BTreeMap<IpAddr, AddressFailures>,
    /// The same addresses, the one to replace first.
    order: BTreeSet<(u32, Instant, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct AddressFailures {
    count: u32,
    since: Instant,
}

impl FailureCounter {
    /// Counts a failure.
    pub fn record(&mut self, address: IpAddr, now: Instant) -> FailureWindow {
        let key = network(address);
        let before = self.counts.get(&key).copied().filter(|failures| !failures.is_over(now));
        let failures = match before {
            Some(AddressFailures { count, since }) => AddressFailures { count: count.saturating_add(1), since },
            None => AddressFailures { count: 1, since: now },
        };
        self.remove(key);
        self.make_room(now);
        self.counts.insert(key, failures);
        self.order.insert((failures.count, failures.since, key));
        FailureWindow { count: failures.count, newly_flagged: failures.count == FLAGGED_ABOVE + 1 }
    }

    /// Whether an address has too many failures.
    #[cfg(test)]
    fn is_flagged(&self, address: IpAddr, now: Instant) -> bool {
        self.counts.get(&network(address)).is_some_and(|failures| failures.is_flagged(now))
    }

    /// The number of flagged addresses.
    pub fn flagged(&self, now: Instant) -> usize {
        let first = (FLAGGED_ABOVE + 1, now.checked_sub(WINDOW).unwrap_or(now), IpAddr::V4([0; 4].into()));
        self.order.range(first..).filter(|(_, since, _)| now < *since + WINDOW).count()
    }

    /// The number of addresses in memory.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.counts.len()
    }

    fn remove(&mut self, key: IpAddr) {
        if let Some(failures) = self.counts.remove(&key) {
            self.order.remove(&(failures.count, failures.since, key));
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.counts.len() < ADDRESSES_MAX {
            return;
        }
        // An address whose window is over has no count any more, however high it was.
        let ended = self.order.last().filter(|(_, since, _)| now >= *since + WINDOW);
        if let Some((_, _, key)) = ended.or_else(|| self.order.first()).copied() {
            self.remove(key);
        }
    }
}

impl AddressFailures {
    fn is_over(self, now: Instant) -> bool {
        now >= self.since + WINDOW
    }

    #[cfg(test)]
    fn is_flagged(self, now: Instant) -> bool {
        self.count > FLAGGED_ABOVE && !self.is_over(now)
    }
}

/// The address that a failure counts for: the /64 network of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use super::*;

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn an_address_is_flagged_above_fifty_failures_a_minute() {
        let (mut counter, start) = (FailureCounter::default(), Instant::now());
        for count in 1..=FLAGGED_ABOVE {
            assert_eq!(counter.record(v4(1), start), FailureWindow { count, newly_flagged: false });
        }
        assert!(!counter.is_flagged(v4(1), start));
        let over = FailureWindow { count: FLAGGED_ABOVE + 1, newly_flagged: true };
        assert_eq!(counter.record(v4(1), start), over);
        assert!(counter.is_flagged(v4(1), start));
        assert!(!counter.record(v4(1), start).newly_flagged, "flagged once");
        assert_eq!((counter.flagged(start), counter.is_flagged(v4(2), start)), (1, false));
        let later = start + WINDOW;
        assert_eq!((counter.flagged(later), counter.is_flagged(v4(1), later)), (0, false));
        assert_eq!(counter.record(v4(1), later).count, 1);
    }

    #[test]
    fn an_ipv6_address_counts_by_its_network_and_a_mapped_one_as_ipv4() {
        let (mut counter, now) = (FailureCounter::default(), Instant::now());
        for text in ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::", "10.0.0.1", "::ffff:10.0.0.1"] {
            counter.record(text.parse().unwrap(), now);
        }
        assert_eq!(counter.len(), 2);
        assert_eq!(counter.record("2001:db8:0:1::".parse().unwrap(), now).count, 1);
    }

    #[test]
    fn many_addresses_take_bounded_memory_and_frequent_ones_stay_counted() {
        let (mut counter, now) = (FailureCounter::default(), Instant::now());
        let frequent = v4(u32::MAX);
        for number in 0..100_000 {
            counter.record(v4(number), now);
            if number % 1_000 == 0 {
                counter.record(frequent, now);
            }
        }
        assert_eq!(counter.len(), ADDRESSES_MAX);
        assert_eq!(counter.order.len(), ADDRESSES_MAX);
        assert!(counter.is_flagged(frequent, now));
    }
}

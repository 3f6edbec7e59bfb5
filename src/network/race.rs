//! Connects to the first reachable address of a name with staggered parallel attempts (RFC 8305).

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};

/// Delay before the next address is tried, unless the attempt before has failed (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Maximum number of addresses tried; with more, the last would have no time left.
const ADDRESSES_MAX: usize = 16;

/// Alternates address families, starting with that of the first address. Keeps the resolver's order within a family.
pub(super) fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    while ordered.len() < ADDRESSES_MAX {
        let turn = [one.next(), other.next()];
        if turn == [None, None] {
            break;
        }
        ordered.extend(turn.into_iter().flatten());
    }
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

/// The addresses as a list for errors.
pub(super) fn display_list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Returns the first connection and drops the other attempts. The caller sets a deadline.
pub(super) async fn connect_first<T, F>(addresses: &[SocketAddr], dial: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(dial(address));
        }
        let more = waiting.len() > 0;
        let outcome = tokio::select! {
            biased;
            Some(outcome) = attempts.next() => Some(outcome),
            () = tokio::time::sleep(ATTEMPT_DELAY), if more => None,
            else => return Err(failed.unwrap_or_else(|| io::Error::other("the name has no address"))),
        };
        match outcome {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) => failed = Some(error),
            None => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_a_long_list_is_cut() {
        let mixed = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.2:1"]);
        let expected = addresses(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"]);
        assert_eq!(interleave(&mixed), expected);
        let many: Vec<SocketAddr> = (1..100).map(|last| SocketAddr::from(([10, 0, 0, last], 1))).collect();
        assert_eq!(interleave(&many), many[..ADDRESSES_MAX]);
        assert_eq!(interleave(&[]), []);
    }

    /// 10.0.0.1 never answers, 10.0.0.2 rejects, 10.0.0.3 accepts.
    async fn tried(last: &[u8]) -> io::Result<SocketAddr> {
        let addresses: Vec<SocketAddr> = last.iter().map(|last| SocketAddr::from(([10, 0, 0, *last], 1))).collect();
        let dial = async |address: SocketAddr| match address.to_string().as_str() {
            "10.0.0.1:1" => std::future::pending().await,
            "10.0.0.2:1" => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            _ => Ok(address),
        };
        connect_first(&addresses, dial).await
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_delays_the_next_by_a_moment_only() {
        assert_eq!(tried(&[1, 2, 3]).await.unwrap().to_string(), "10.0.0.3:1");
        assert_eq!(tried(&[2, 1, 3]).await.unwrap().to_string(), "10.0.0.3:1");
        assert_eq!(tried(&[2]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(tried(&[]).await.unwrap_err().to_string().contains("no address"));
        let hung = tokio::time::timeout(4 * ATTEMPT_DELAY, tried(&[1, 2])).await;
        assert!(hung.is_err(), "the race has no deadline of its own: {hung:?}");
    }
}

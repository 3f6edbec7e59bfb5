//! The meaning of an HTTP status: one table for upgrades, REST calls and token requests.
//!
//! The table reads only the status and `Retry-After`. The connector and the token client read what a platform adds, such
//! as an error code in a body.

use std::time::Duration;

/// The request that got a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// The upgrade request of a WebSocket.
    Upgrade,
    /// A REST call under the account's token.
    Call,
    /// A request for a token.
    TokenRequest,
}

/// The meaning of a status for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusMeaning {
    /// The request was carried out.
    Success,
    /// Back off and repeat the request unchanged.
    Transient,
    /// Too many requests. Retry after this time; without it, back off.
    Throttled(Option<Duration>),
    /// The access token, or the credentials of a token request, were refused.
    Unauthenticated,
    /// The request was refused. An operator must change something.
    Refused,
}

impl StatusMeaning {
    /// `retry_after` is the delay that the response requests. It counts only with 429 and 503.
    pub fn of(exchange: Exchange, status: u16, retry_after: Option<Duration>) -> Self {
        match (exchange, status) {
            (_, 429) => Self::Throttled(retry_after),
            (_, 503) if retry_after.is_some() => Self::Throttled(retry_after),
            (Exchange::Upgrade, 101) | (Exchange::Call | Exchange::TokenRequest, 200..=299) => Self::Success,
            (_, 401) => Self::Unauthenticated,
            // Deployments, load balancers and firewalls can answer an upgrade with any of these for minutes.
            (Exchange::Upgrade, _) => Self::Transient,
            // Proxy login (407), timeout (408), wrong server (421), too early (425): not decisions of the platform.
            (Exchange::Call | Exchange::TokenRequest, 407 | 408 | 421 | 425) => Self::Transient,
            (Exchange::Call | Exchange::TokenRequest, 400..=499) => Self::Refused,
            (Exchange::Call | Exchange::TokenRequest, _) => Self::Transient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_meaning_for_an_upgrade_a_call_and_a_token_request() {
        use StatusMeaning::{Refused, Success, Throttled, Transient, Unauthenticated};
        const PAUSE: Option<Duration> = Some(Duration::from_secs(7));
        // status, Retry-After; upgrade, REST call, token request
        let table = [
            (101, None, [Success, Transient, Transient]),
            (200, None, [Transient, Success, Success]),
            (201, None, [Transient, Success, Success]),
            (204, None, [Transient, Success, Success]),
            (301, None, [Transient, Transient, Transient]),
            (302, None, [Transient, Transient, Transient]),
            (307, PAUSE, [Transient, Transient, Transient]),
            (400, None, [Transient, Refused, Refused]),
            (401, None, [Unauthenticated, Unauthenticated, Unauthenticated]),
            (401, PAUSE, [Unauthenticated, Unauthenticated, Unauthenticated]),
            (403, None, [Transient, Refused, Refused]),
            (404, None, [Transient, Refused, Refused]),
            (407, None, [Transient, Transient, Transient]),
            (408, None, [Transient, Transient, Transient]),
            (421, None, [Transient, Transient, Transient]),
            (425, None, [Transient, Transient, Transient]),
            (426, None, [Transient, Refused, Refused]),
            (429, None, [Throttled(None), Throttled(None), Throttled(None)]),
            (429, PAUSE, [Throttled(PAUSE), Throttled(PAUSE), Throttled(PAUSE)]),
            (500, PAUSE, [Transient, Transient, Transient]),
            (502, None, [Transient, Transient, Transient]),
            (503, None, [Transient, Transient, Transient]),
            (503, PAUSE, [Throttled(PAUSE), Throttled(PAUSE), Throttled(PAUSE)]),
            (599, None, [Transient, Transient, Transient]),
            (999, None, [Transient, Transient, Transient]),
        ];
        for (status, pause, expected) in table {
            let found = [Exchange::Upgrade, Exchange::Call, Exchange::TokenRequest]
                .map(|exchange| StatusMeaning::of(exchange, status, pause));
            assert_eq!(found, expected, "{status} {pause:?}");
        }
    }
}

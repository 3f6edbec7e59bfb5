//! What an HTTP status means: one table for upgrades, REST calls and token requests.
//!
//! It reads the status and `Retry-After` only. What a platform adds to it (an error code in a body, a channel that is
//! gone) is read by the connector and by the token endpoint's client.

use std::time::Duration;

/// What was sent when a status came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// The upgrade request of a WebSocket.
    Upgrade,
    /// A REST call under the account's token.
    Call,
    /// A request for a token.
    TokenRequest,
}

/// What a status means to whoever sent the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusMeaning {
    /// The request was carried out.
    Success,
    /// Back off and try again unchanged.
    Transient,
    /// Too many requests. Try again after this time, or back off where the answer names none.
    Throttled(Option<Duration>),
    /// What authenticates the request is not accepted: the access token, or the credentials of a token request.
    Unauthenticated,
    /// The request was understood and is not wanted: an operator has to change something.
    Refused,
}

impl StatusMeaning {
    /// `retry_after` is the pause that the answer asks for. Only a 429 and a 503 are believed.
    pub fn of(exchange: Exchange, status: u16, retry_after: Option<Duration>) -> Self {
        match (exchange, status) {
            (_, 429) => Self::Throttled(retry_after),
            (_, 503) if retry_after.is_some() => Self::Throttled(retry_after),
            (Exchange::Upgrade, 101) | (Exchange::Call | Exchange::TokenRequest, 200..=299) => Self::Success,
            (_, 401) => Self::Unauthenticated,
            // A deployment, a load balancer or a firewall answers an upgrade with any of these for minutes.
            (Exchange::Upgrade, _) => Self::Transient,
            // The proxy wants a login (407), the time was too short (408), the request went to the wrong server (421), or came
            // too early (425): nothing that the platform decided.
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

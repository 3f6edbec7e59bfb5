//! The lifetime of a token: from the answer, else from the token's claims, else the configured default.
//!
//! The local wall clock is not used. Signatures are not verified: only the times in the claims are read.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::model::Timestamp;

/// A shorter lifetime is ignored: such a token would expire before a socket is open, and would cause a request and a
/// rotation each second.
pub const LIFETIME_MIN: Duration = Duration::from_secs(2);

/// Longer lifetimes are cut to this, so that a token is refreshed at least every other day.
pub const LIFETIME_MAX: Duration = Duration::from_secs(48 * 3_600);

/// The known facts about a token's lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LifetimeHints {
    /// The number of seconds in the answer.
    pub expires_in: Option<f64>,
    pub claims: Claims,
    /// The platform's clock at the answer (`Date`).
    pub answered_at: Option<Timestamp>,
}

/// Times in a JSON Web Token (RFC 7519), in seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Claims {
    pub issued_at: Option<f64>,
    pub expires_at: Option<f64>,
}

/// The lifetime by which a token is refreshed, and its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Between [`LIFETIME_MIN`] and [`LIFETIME_MAX`], from the sending of the request.
    pub scheduled: Duration,
    /// `exp - iat` of the token itself.
    pub claimed: Option<Duration>,
    pub source: LifetimeSource,
}

/// The source of a lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifetimeSource {
    Answer,
    Claims,
    /// The configured default, because neither the answer nor the token has a lifetime. It causes a warning.
    Default,
}

impl Lifetime {
    /// Chooses the lifetime. `default` is used if none is stated.
    pub fn resolve(stated: &LifetimeHints, default: Duration) -> Self {
        let claimed = stated.claims.lifetime();
        let is_plausible = |life: &Duration| *life >= LIFETIME_MIN;
        let answered = stated.expires_in.map(positive).filter(is_plausible);
        let (life, source) = match (answered, claimed.filter(is_plausible)) {
            (Some(life), _) => (life, LifetimeSource::Answer),
            (None, Some(life)) => (life, LifetimeSource::Claims),
            (None, None) => {
                let bound = Some(stated.upper_bound()).filter(is_plausible);
                (default.min(bound.unwrap_or(LIFETIME_MAX)), LifetimeSource::Default)
            }
        };
        Self { scheduled: life.clamp(LIFETIME_MIN, LIFETIME_MAX), claimed, source }
    }
}

impl LifetimeSource {
    /// The name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Claims => "claims",
            Self::Default => "default",
        }
    }
}

impl LifetimeHints {
    /// The upper bound by `exp`, measured on the platform's clock.
    fn upper_bound(&self) -> Duration {
        match (self.claims.expires_at, self.answered_at) {
            (Some(expires_at), Some(answered)) => positive(expires_at - answered.0 as f64 / 1_000.0),
            (Some(_), None) | (None, Some(_) | None) => LIFETIME_MAX,
        }
    }
}

impl Claims {
    /// Reads the claims of a token, if it is a JSON Web Token.
    pub fn of(token: &str) -> Self {
        Self::read(token).unwrap_or_default()
    }

    fn read(token: &str) -> Option<Self> {
        let payload = token.split('.').nth(1)?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let time = |claim| claims.get(claim).and_then(seconds);
        Some(Self { issued_at: time("iat"), expires_at: time("exp") })
    }

    /// `exp - iat`, if both are present and valid.
    pub fn lifetime(self) -> Option<Duration> {
        let life = self.expires_at? - self.issued_at?;
        (life > 0.0).then(|| positive(life))
    }
}

/// A number of seconds in the forms that servers use: `1800`, `1800.0`, `"1800"`.
pub fn seconds(value: &Value) -> Option<f64> {
    let secs = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (!secs.is_nan()).then_some(secs)
}

/// A negative number is zero. A number that does not fit is [`LIFETIME_MAX`].
fn positive(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(LIFETIME_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DEFAULT: Duration = Duration::from_secs(600);

    #[test]
    fn the_response_precedes_the_claims_and_the_claims_the_default() {
        // expires_in, the token's claims, the answer's date (s); lifetime and its source
        let table = [
            (json!(1800), json!({"iat": 1000, "exp": 1900}), None, 1800, "answer"),
            (json!("1800"), json!({}), None, 1800, "answer"),
            (json!(" 1800.5 "), json!({}), None, 1800, "answer"),
            (json!(2), json!({}), None, 2, "answer"),
            (json!(0), json!({}), None, 600, "default"),
            (json!(1), json!({}), None, 600, "default"),
            (json!(1.9), json!({}), None, 600, "default"),
            (json!(" 0 "), json!({}), None, 600, "default"),
            (json!(-7), json!({}), None, 600, "default"),
            (json!("-1e999"), json!({}), None, 600, "default"),
            (json!(0), json!({"iat": 1000, "exp": 1900}), None, 900, "claims"),
            (json!(0), json!({"iat": 1000, "exp": 1001}), None, 600, "default"),
            (json!(null), json!({"exp": 1001}), Some(1_000), 600, "default"),
            (json!(1e300), json!({}), None, 172_800, "answer"),
            (json!("1e999"), json!({}), None, 172_800, "answer"),
            (json!(31_536_000), json!({}), None, 172_800, "answer"),
            (json!(null), json!({"iat": 1000, "exp": 1900}), None, 900, "claims"),
            (json!("soon"), json!({"iat": 1000, "exp": "1900"}), None, 900, "claims"),
            (json!("NaN"), json!({"iat": 1000, "exp": 1900}), None, 900, "claims"),
            (json!([1800]), json!({"iat": 1000, "exp": 1000}), None, 600, "default"),
            (json!(null), json!({"iat": 2000, "exp": 1000}), None, 600, "default"),
            (json!(null), json!({"exp": 1300}), Some(1_000), 300, "default"),
            (json!(null), json!({"exp": 99_999}), Some(1_000), 600, "default"),
            (json!(null), json!({"exp": 1300}), None, 600, "default"),
            (json!(null), json!({}), Some(1_000), 600, "default"),
        ];
        for (expires_in, claims, answered, life, source) in table {
            let stated = LifetimeHints {
                expires_in: seconds(&expires_in),
                claims: Claims::of(&jwt(&claims)),
                answered_at: answered.map(|secs| Timestamp(secs * 1_000)),
            };
            let lifetime = Lifetime::resolve(&stated, DEFAULT);
            let found = (lifetime.scheduled.as_secs(), lifetime.source.as_str());
            assert_eq!(found, (life, source), "{expires_in} {claims} {answered:?}");
        }
    }

    #[test]
    fn the_claimed_lifetime_is_reported_with_the_scheduled_one() {
        let claims = Claims::of(&jwt(&json!({"iat": 1000, "exp": 1900})));
        let lifetime = Lifetime::resolve(&LifetimeHints { expires_in: Some(60.0), claims, answered_at: None }, DEFAULT);
        assert_eq!(lifetime.claimed, Some(Duration::from_secs(900)));
        assert_eq!(lifetime.scheduled, Duration::from_secs(60));
    }

    #[test]
    fn an_opaque_token_has_no_claims() {
        for token in ["", "opaque", "a.b.c", "a.e30", "..", "a.W10.c", "a.bnVsbA.c"] {
            assert_eq!(Claims::of(token), Claims::default(), "{token:?}");
        }
    }

    proptest! {
        #[test]
        fn the_lifetime_is_bounded_for_all_hints(
            expires_in in proptest::option::of(any::<f64>()),
            issued_at in proptest::option::of(any::<f64>()),
            expires_at in proptest::option::of(any::<f64>()),
            answered_at in proptest::option::of(any::<i64>().prop_map(Timestamp)),
        ) {
            let stated = LifetimeHints { expires_in, claims: Claims { issued_at, expires_at }, answered_at };
            let life = Lifetime::resolve(&stated, DEFAULT).scheduled;
            prop_assert!(life == DEFAULT || expires_in.is_some() || issued_at.is_some() || expires_at.is_some());
            prop_assert!((LIFETIME_MIN..=LIFETIME_MAX).contains(&life));
        }

        #[test]
        fn no_text_makes_the_claims_panic(token in ".{0,80}") {
            Claims::of(&token);
        }
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }
}

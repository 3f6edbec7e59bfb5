//! The claims of a consumer's token (RFC 7519 section 4), checked and turned into a grant.
//!
//! The signature was verified before. An error names a claim and never shows its value.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{ConsumerGrant, StreamPattern, Subject};
use crate::model::Timestamp;

/// The difference that is allowed between the clocks of the issuer and of this machine.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(5);

/// Maximum patterns of a token.
const PATTERNS_MAX: usize = 256;

/// Maximum bytes of a filter.
const FILTER_LEN_MAX: usize = 4096;

/// The last second of the year 9999. Later times are errors, such as milliseconds in place of seconds.
const SECONDS_MAX: f64 = 253_402_300_799.0;

/// The required issuer and audience of tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimRules {
    /// The name of this daemon in `aud`. None: tokens must have no `aud` (RFC 7519 section 4.1.3).
    pub audience: Option<String>,
    /// The expected `iss`. None: every issuer, because the configured key belongs to one.
    pub issuer: Option<String>,
}

/// Why claims give no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error("the claims are not a JSON object, or have a claim twice")]
    Unreadable,
    #[error("the claim {0} is missing")]
    Missing(&'static str),
    #[error("the claim {0} is invalid")]
    Invalid(&'static str),
    #[error("the token has another issuer than http.auth.issuer")]
    Issuer,
    #[error("the token is not for the audience http.auth.audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet, or was issued in the future; compare the clocks")]
    NotYetValid,
}

impl ClaimError {
    /// A short name, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreadable => "claims",
            Self::Missing(_) => "claim_missing",
            Self::Invalid(_) => "claim_invalid",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
        }
    }
}

impl ClaimRules {
    /// The grant of these claims at the time `now`. `exp`, `sub` and `streams` are required.
    pub fn grant(&self, claims: &str, now: Timestamp) -> Result<ConsumerGrant, ClaimError> {
        let claims = ClaimTexts::read(claims).ok_or(ClaimError::Unreadable)?;
        self.check_issuer(claims.iss)?;
        self.check_audience(claims.aud)?;
        let expires_at = moment("exp", claims.exp)?.ok_or(ClaimError::Missing("exp"))?;
        let issued_at = moment("iat", claims.iat)?;
        if now >= expires_at.after(TOKEN_LEEWAY) {
            return Err(ClaimError::Expired);
        }
        // A token from the future would outlive the revocation of its subject.
        let from = issued_at.max(moment("nbf", claims.nbf)?);
        if from.is_some_and(|from| from > now.after(TOKEN_LEEWAY)) {
            return Err(ClaimError::NotYetValid);
        }
        Ok(ConsumerGrant {
            subject: subject(claims.sub)?,
            streams: streams(claims.streams)?,
            expires_at,
            issued_at,
            filter: filter(claims.filter)?,
        })
    }

    fn check_issuer(&self, iss: Option<&RawValue>) -> Result<(), ClaimError> {
        let Some(expected) = &self.issuer else { return Ok(()) };
        let found: String = parsed("iss", iss)?.ok_or(ClaimError::Missing("iss"))?;
        if found == *expected { Ok(()) } else { Err(ClaimError::Issuer) }
    }

    fn check_audience(&self, aud: Option<&RawValue>) -> Result<(), ClaimError> {
        match (&self.audience, parsed::<Audience>("aud", aud)?) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(ClaimError::Missing("aud")),
            (Some(own), Some(Audience::One(name))) if name == *own => Ok(()),
            (Some(own), Some(Audience::Several(names))) if names.contains(own) => Ok(()),
            (Some(_) | None, Some(_)) => Err(ClaimError::Audience),
        }
    }
}

/// The known claims, as JSON. Other claims are ignored, and a repeated claim is an error.
#[derive(Deserialize)]
struct ClaimTexts<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    iss: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    aud: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    sub: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    exp: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    nbf: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    iat: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    streams: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    filter: Option<&'a RawValue>,
}

impl<'a> ClaimTexts<'a> {
    /// The claims of a JSON object. A list of values is rejected.
    fn read(text: &'a str) -> Option<Self> {
        text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok())?
    }
}

/// A claim that is null is present, and invalid: a filter of null must not mean "no filter".
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

fn parsed<'a, T: Deserialize<'a>>(name: &'static str, claim: Option<&'a RawValue>) -> Result<Option<T>, ClaimError> {
    claim.map(|claim| serde_json::from_str(claim.get()).map_err(|_| ClaimError::Invalid(name))).transpose()
}

/// A time in seconds since 1970, with or without a fraction.
fn moment(name: &'static str, claim: Option<&RawValue>) -> Result<Option<Timestamp>, ClaimError> {
    let Some(seconds) = parsed::<f64>(name, claim)? else { return Ok(None) };
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(ClaimError::Invalid(name));
    }
    Ok(Some(Timestamp::default().after(Duration::from_secs_f64(seconds))))
}

fn subject(claim: Option<&RawValue>) -> Result<Subject, ClaimError> {
    let text: String = parsed("sub", claim)?.ok_or(ClaimError::Missing("sub"))?;
    text.parse().map_err(|_| ClaimError::Invalid("sub"))
}

fn streams(claim: Option<&RawValue>) -> Result<Vec<StreamPattern>, ClaimError> {
    const NAME: &str = "streams";
    let texts: Vec<String> = parsed(NAME, claim)?.ok_or(ClaimError::Missing(NAME))?;
    if !(1..=PATTERNS_MAX).contains(&texts.len()) {
        return Err(ClaimError::Invalid(NAME));
    }
    let patterns = texts.iter().map(|text| text.parse());
    patterns.collect::<Result<_, _>>().map_err(|_| ClaimError::Invalid(NAME))
}

fn filter(claim: Option<&RawValue>) -> Result<Option<String>, ClaimError> {
    const NAME: &str = "filter";
    let Some(text) = parsed::<String>(NAME, claim)? else { return Ok(None) };
    let valid = !text.trim().is_empty() && text.len() <= FILTER_LEN_MAX;
    if valid { Ok(Some(text)) } else { Err(ClaimError::Invalid(NAME)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    fn rules(audience: Option<&str>, issuer: Option<&str>) -> ClaimRules {
        ClaimRules { audience: audience.map(str::to_owned), issuer: issuer.map(str::to_owned) }
    }

    /// Required claims, and these in front of them.
    fn grant(more: &str) -> Result<ConsumerGrant, ClaimError> {
        let claims = format!(r#"{{{more} "sub":"s","exp":1000000060,"streams":["*"]}}"#);
        ClaimRules::default().grant(&claims, NOW)
    }

    #[test]
    fn valid_claims_are_a_grant() {
        let claims = r#"{"iss":"i","aud":["x","t"],"sub":"wall","exp":1000000060.5,"nbf":999999999,"iat":1e9,
            "streams":["queues","acme.*"],"filter":"type == 'a'","jti":"1","scope":{"a":[]}}"#;
        let grant = rules(Some("t"), Some("i")).grant(claims, NOW).unwrap();
        assert_eq!(grant.subject.as_str(), "wall");
        assert_eq!(grant.expires_at, Timestamp(1_000_000_060_500));
        assert_eq!(grant.issued_at, Some(NOW));
        assert_eq!(grant.filter.as_deref(), Some("type == 'a'"));
        let names: Vec<&str> = grant.streams.iter().map(StreamPattern::as_str).collect();
        assert_eq!(names, ["queues", "acme.*"]);
        assert_eq!(self::grant("").unwrap().issued_at, None);
    }

    #[test]
    fn each_required_claim_is_required() {
        for (claims, error) in [
            (r#"{"exp":2000000000,"streams":["*"]}"#, ClaimError::Missing("sub")),
            (r#"{"sub":"s","streams":["*"]}"#, ClaimError::Missing("exp")),
            (r#"{"sub":"s","exp":2000000000}"#, ClaimError::Missing("streams")),
            ("{}", ClaimError::Missing("exp")),
            ("[]", ClaimError::Unreadable),
            ("null", ClaimError::Unreadable),
            ("", ClaimError::Unreadable),
            (r#"{"sub":"s","sub":"t","exp":2000000000,"streams":["*"]}"#, ClaimError::Unreadable),
            (r#"{"sub":"s","exp":2000000000,"exp":1,"streams":["*"]}"#, ClaimError::Unreadable),
            (r#"{"sub":"s","exp":2000000000,"streams":["*"]} x"#, ClaimError::Unreadable),
        ] {
            assert_eq!(ClaimRules::default().grant(claims, NOW), Err(error), "{claims}");
        }
    }

    #[test]
    fn a_claim_of_another_type_or_size_is_invalid() {
        let many = format!("[{}]", vec![r#""a""#; 257].join(","));
        let long = format!(r#""{}""#, "x".repeat(4097));
        for (name, value) in [
            ("sub", "1"),
            ("sub", "null"),
            ("sub", r#""""#),
            ("sub", r#""a\nb""#),
            ("exp", r#""2000000000""#),
            ("exp", "null"),
            ("exp", "-1"),
            ("exp", "1e400"),
            ("exp", "1000000060000"),
            ("exp", "[2000000000]"),
            ("nbf", "true"),
            ("iat", r#""now""#),
            ("iat", "null"),
            ("streams", r#""*""#),
            ("streams", "[]"),
            ("streams", "[1]"),
            ("streams", r#"["a",null]"#),
            ("streams", r#"["Queues"]"#),
            ("streams", &many),
            ("filter", "null"),
            ("filter", "true"),
            ("filter", r#"" ""#),
            ("filter", &long),
            ("aud", "1"),
            ("aud", r#"["t",1]"#),
        ] {
            let base = [("sub", r#""s""#), ("exp", "2000000000"), ("streams", r#"["*"]"#)];
            let rest = base.iter().filter(|(key, _)| key != &name).map(|(key, value)| format!(r#","{key}":{value}"#));
            let claims = format!(r#"{{"{name}":{value}{}}}"#, rest.collect::<String>());
            assert_eq!(ClaimRules::default().grant(&claims, NOW), Err(ClaimError::Invalid(name)), "{claims}");
        }
    }

    #[test]
    fn issuer_and_audience_must_be_the_configured_ones() {
        let base = r#""sub":"s","exp":2000000000,"streams":["*"]"#;
        for (audience, issuer, claims, expected) in [
            (None, None, r#""iss":"any","#, Ok(())),
            (None, Some("i"), r#""iss":"i","#, Ok(())),
            (None, Some("i"), r#""iss":"I","#, Err(ClaimError::Issuer)),
            (None, Some("i"), r#""iss":["i"],"#, Err(ClaimError::Invalid("iss"))),
            (None, Some("i"), "", Err(ClaimError::Missing("iss"))),
            (Some("t"), None, r#""aud":"t","#, Ok(())),
            (Some("t"), None, r#""aud":["u","t"],"#, Ok(())),
            (Some("t"), None, r#""aud":"u","#, Err(ClaimError::Audience)),
            (Some("t"), None, r#""aud":[],"#, Err(ClaimError::Audience)),
            (Some("t"), None, r#""aud":null,"#, Err(ClaimError::Invalid("aud"))),
            (Some("t"), None, "", Err(ClaimError::Missing("aud"))),
            (None, None, r#""aud":"t","#, Err(ClaimError::Audience)),
            (None, None, r#""aud":[],"#, Err(ClaimError::Audience)),
        ] {
            let found = rules(audience, issuer).grant(&format!("{{{claims}{base}}}"), NOW).map(drop);
            assert_eq!(found, expected, "{audience:?} {issuer:?} {claims}");
        }
    }

    #[test]
    fn a_token_is_valid_between_its_times_with_a_leeway() {
        for (claims, millis_later, expected) in [
            ("", 64_999, Ok(())),
            ("", 65_000, Err(ClaimError::Expired)),
            (r#""nbf":1000000005,"#, 0, Ok(())),
            (r#""nbf":1000000005.1,"#, 0, Err(ClaimError::NotYetValid)),
            (r#""nbf":1000000006,"#, 1000, Ok(())),
            (r#""iat":1000000006,"#, 0, Err(ClaimError::NotYetValid)),
            (r#""iat":1000000000,"nbf":1000000006,"#, 0, Err(ClaimError::NotYetValid)),
            (r#""iat":1000000006,"nbf":1000000000,"#, 0, Err(ClaimError::NotYetValid)),
        ] {
            let claims = format!(r#"{{{claims}"sub":"s","exp":1000000060,"streams":["*"]}}"#);
            let now = Timestamp(NOW.0 + millis_later);
            assert_eq!(ClaimRules::default().grant(&claims, now).map(drop), expected, "{claims} {millis_later}");
        }
    }

    #[test]
    fn an_error_shows_no_value() {
        let error = grant(r#""filter":{"canary":1},"#).unwrap_err();
        assert_eq!(error.to_string(), "the claim filter is invalid");
        assert!(!format!("{error:?}").contains("canary"));
    }
}

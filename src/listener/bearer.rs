//! The token in an `Authorization` header (RFC 6750 section 2.1). Pure.

use hyper::{HeaderMap, header::AUTHORIZATION};

/// The header is repeated, not ASCII, or of another scheme than `Bearer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedAuthorization;

/// The token of the single `Authorization` header; none without the header.
pub fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, MalformedAuthorization> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none()).ok_or(MalformedAuthorization)?;
    let (scheme, token) = text.trim().split_once(' ').ok_or(MalformedAuthorization)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(MalformedAuthorization) }
}

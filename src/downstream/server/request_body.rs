//! Reads the JSON body of a request.

use axum::body::{Body, to_bytes};
use serde::de::DeserializeOwned;

/// Maximum bytes of a body.
const BODY_LEN_MAX: usize = 16 * 1024;

/// The body is too long, incomplete, or not the expected JSON.
#[derive(Debug)]
pub(super) struct InvalidBody;

/// The value in a body; none if the body is empty.
pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Result<Option<T>, InvalidBody> {
    let body = to_bytes(body, BODY_LEN_MAX).await.map_err(|_| InvalidBody)?;
    if body.is_empty() { Ok(None) } else { serde_json::from_slice(&body).map(Some).map_err(|_| InvalidBody) }
}

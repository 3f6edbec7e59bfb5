//! The token of operators: required for everything but health, readiness and metrics.

use axum::http::{
    HeaderMap, StatusCode,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::{
    listener::{bearer::bearer_token, problem::HttpProblem},
    model::{Secret, SecretRef},
    secrets,
    telemetry::chain,
};

/// Checks the token of a request. The secret is read for each request, so a changed file takes effect at once.
///
/// # Errors
/// The response to a request without the token.
pub(super) async fn check(expected: Option<&SecretRef>, headers: &HeaderMap) -> Result<(), HttpProblem> {
    let Some(expected) = expected else { return Ok(()) };
    let expected = secrets::read(expected).await.map_err(|error| {
        tracing::warn!(error = chain(&error), "cannot read admin.token; admin requests are refused");
        let detail = "the daemon cannot read its admin.token; see its log";
        HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, "token-unreadable", "Token unreadable", detail)
            .with(RETRY_AFTER, "5")
    })?;
    if matches!(bearer_token(headers), Ok(Some(token)) if Secret::new(token) == expected) {
        return Ok(());
    }
    let detail = "admin.token is required as a Bearer token, for example by TRUNKLINE_TOKEN for the command line";
    Err(HttpProblem::new(StatusCode::UNAUTHORIZED, "credentials-required", "Credentials required", detail)
        .with(WWW_AUTHENTICATE, "Bearer realm=\"trunkline-admin\""))
}

#[cfg(test)]
mod tests {
    use axum::http::header::AUTHORIZATION;

    use super::*;

    #[tokio::test]
    async fn only_the_configured_token_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "operator-secret\n").unwrap();
        let expected = SecretRef::File(path.clone());
        let checked = async |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(AUTHORIZATION, line.parse().unwrap());
            }
            check(Some(&expected), &headers).await.map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(checked(&["Bearer operator-secret"]).await, Ok(()));
        assert_eq!(checked(&["bearer  operator-secret"]).await, Ok(()));
        for lines in [&[][..], &["Bearer other"], &["Basic operator-secret"], &["operator-secret"]] {
            assert_eq!(checked(lines).await, Err(401), "{lines:?}");
        }
        assert_eq!(checked(&["Bearer operator-secret", "Bearer operator-secret"]).await, Err(401), "two headers");
        std::fs::write(&path, "changed").unwrap();
        assert_eq!(checked(&["Bearer changed"]).await, Ok(()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(checked(&["Bearer changed"]).await, Err(503));
        assert_eq!(check(None, &HeaderMap::new()).await, Ok(()));
    }
}

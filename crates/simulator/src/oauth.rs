//! The token endpoint and its faults. It rejects requests that RFC 6749 rejects; `tokens` has the state of the
//! tokens.

use std::future::pending;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::clock::{http_date, now, wall};
use super::fault::TokenFailure;
use super::form;
use super::platform::SimulatedPlatform;
use super::reply;
use super::server::TransportControl;
use super::tokens::{ClientCredentials, GrantRejection, TokenGrant, TokenRequest};

/// Padding that makes an answer larger than 64 KiB.
const HUGE_PADDING_LEN: usize = 80 * 1024;

/// `POST /oauth/token`
pub(super) async fn grant(
    State(platform): State<Arc<SimulatedPlatform>>,
    Extension(control): Extension<TransportControl>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let failure = platform.lock().faults.take_token_failure();
    let mut answer = match failure {
        None => grant_token(&platform, &headers, &body, |answer| answer),
        Some(failure) => {
            platform.lock().counters.token_failures += 1;
            answer_with_failure(failure, &platform, &control, &headers, &body).await
        }
    };
    let date = http_date(wall(platform.settings.clock_offset));
    if let Ok(date) = date.parse() {
        answer.headers_mut().insert(header::DATE, date);
    }
    answer
}

async fn answer_with_failure(
    failure: TokenFailure,
    platform: &SimulatedPlatform,
    control: &TransportControl,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response {
    match failure {
        TokenFailure::TooManyRequests { retry_after } => {
            let message = "Rate limit exceeded";
            let answer = reply::error(StatusCode::TOO_MANY_REQUESTS, "too.many.requests", message);
            reply::retry_after(answer, retry_after.as_deref())
        }
        TokenFailure::Status { status } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            reply::error(status, "internal.server.error", "A simulated failure.")
        }
        TokenFailure::InvalidClient => rejection(GrantRejection::ClientSecret),
        TokenFailure::InvalidGrant => rejection(GrantRejection::InvalidGrant),
        TokenFailure::Reset => {
            control.reset();
            pending().await
        }
        TokenFailure::Slow { duration: lasting } => {
            sleep(lasting).await;
            grant_token(platform, headers, body, |answer| answer)
        }
        TokenFailure::Silent => pending().await,
        TokenFailure::Html => Html("<html><body><h1>Sign in</h1></body></html>").into_response(),
        TokenFailure::Huge => {
            grant_token(platform, headers, body, |answer| with(answer, "padding", json!("x".repeat(HUGE_PADDING_LEN))))
        }
        TokenFailure::NoExpiresIn => grant_token(platform, headers, body, without_expiry),
        TokenFailure::ExpiresIn { json } => {
            let value = serde_json::from_str(&json).unwrap_or(Value::Null);
            grant_token(platform, headers, body, |answer| with(answer, "expires_in", value))
        }
        TokenFailure::Redirect { to } => (StatusCode::FOUND, [(header::LOCATION, to)]).into_response(),
    }
}

/// The right answer to the request; `change` may change a success.
fn grant_token(
    platform: &SimulatedPlatform,
    headers: &HeaderMap,
    body: &Bytes,
    change: impl FnOnce(Value) -> Value,
) -> Response {
    let Some(presented) = token_request(headers, body) else {
        platform.lock().counters.token_failures += 1;
        let body = json!({"error": "invalid_request", "error_description": "a form is expected"});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    };
    let epoch = wall(platform.settings.clock_offset).unix_timestamp();
    let mut state = platform.lock();
    let granted = state.tokens.grant(&presented, now(), epoch);
    match granted {
        Ok(grant) => {
            *state.counters.grants.entry(grant.kind.to_owned()).or_default() += 1;
            drop(state);
            let no_store = [(header::CACHE_CONTROL, "no-store")];
            (no_store, Json(change(token_answer(grant)))).into_response()
        }
        Err(denied) => {
            state.counters.token_failures += 1;
            drop(state);
            rejection(denied)
        }
    }
}

fn token_answer(grant: TokenGrant) -> Value {
    let answer = json!({
        "access_token": grant.access_token, "token_type": "bearer", "expires_in": grant.expires_in,
    });
    match grant.refresh_token {
        Some(token) => with(answer, "refresh_token", json!(token)),
        None => answer,
    }
}

fn with(mut answer: Value, name: &str, value: Value) -> Value {
    answer[name] = value;
    answer
}

fn without_expiry(mut answer: Value) -> Value {
    if let Some(object) = answer.as_object_mut() {
        object.remove("expires_in");
    }
    answer
}

fn rejection(denied: GrantRejection) -> Response {
    let (status, error, description) = match denied {
        GrantRejection::ClientNotFound => (StatusCode::UNAUTHORIZED, "invalid_client", "client not found"),
        GrantRejection::ClientSecret => (StatusCode::UNAUTHORIZED, "invalid_client", "authentication failed"),
        GrantRejection::InvalidGrant => (StatusCode::BAD_REQUEST, "invalid_grant", "the grant is invalid or was used"),
        GrantRejection::UnsupportedGrant => {
            (StatusCode::BAD_REQUEST, "unsupported_grant_type", "grant type not supported")
        }
    };
    let body = json!({"error": error, "description": description, "error_description": description});
    (status, Json(body)).into_response()
}

/// The client, from Basic credentials or else from the body, and the form.
fn token_request(headers: &HeaderMap, body: &Bytes) -> Option<TokenRequest> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    if !kind.starts_with("application/x-www-form-urlencoded") {
        return None;
    }
    let form = form::pairs(std::str::from_utf8(body).ok()?)?;
    let client = match headers.get(header::AUTHORIZATION) {
        Some(value) => client_in_header(value.to_str().ok()?),
        None => client_in_body(&form),
    };
    Some(TokenRequest { client, form })
}

fn client_in_header(value: &str) -> Option<ClientCredentials> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some(ClientCredentials { id: form::decode(id)?, secret: form::decode(secret)? })
}

fn client_in_body(form: &[(String, String)]) -> Option<ClientCredentials> {
    let value = |name| form::value(form, name).map(str::to_owned);
    Some(ClientCredentials { id: value("client_id")?, secret: value("client_secret")? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::StatusCode;
    use serde_json::{Value, json};

    use crate::probe::SimulatorProbe;
    use crate::{PlatformFault, Settings, TokenFailure, TokenKind};

    #[tokio::test]
    async fn a_client_authenticates_by_basic_header_or_body() {
        let settings = Settings {
            client_id: "a b:c".to_owned(),
            client_secret: "s+e%c&r=é".to_owned(),
            token_ttl: Duration::from_secs(77),
            ..Settings::default()
        };
        let probe = SimulatorProbe::without_token(settings).await;
        let url = probe.simulator.url() + "/api/v2/oauth/token";
        let grant = ("grant_type", "client_credentials");
        let encoded = ("a+b%3Ac", "s%2Be%25c%26r%3D%C3%A9");
        let basic = probe.http.post(&url).basic_auth(encoded.0, Some(encoded.1)).form(&[grant]);
        let in_body = probe.http.post(&url).form(&[grant, ("client_id", "a b:c"), ("client_secret", "s+e%c&r=é")]);
        for request in [basic, in_body] {
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            assert_eq!((&answer["token_type"], &answer["expires_in"]), (&json!("bearer"), &json!(77)));
            assert!(answer["access_token"].is_string() && answer["refresh_token"].is_null());
        }
        assert_eq!(probe.simulator.counters().grants["client_credentials"], 2);
    }

    #[tokio::test]
    async fn a_refresh_token_is_replaced_at_each_use() {
        let probe = SimulatorProbe::without_token(Settings::default()).await;
        let url = probe.simulator.url() + "/oauth/token";
        let refresh = async |token: &str| {
            let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
            let answer =
                probe.http.post(&url).basic_auth("demo", Some("demo-secret")).form(&form).send().await.unwrap();
            (answer.status(), answer.json::<Value>().await.unwrap())
        };
        let (_, first) = refresh("demo-refresh").await;
        let (status, second) = refresh(first["refresh_token"].as_str().unwrap()).await;
        assert!(status.is_success() && second["refresh_token"] != first["refresh_token"]);
        let (status, reused) = refresh("demo-refresh").await;
        assert_eq!((status, &reused["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
    }

    #[tokio::test]
    async fn a_wrong_secret_is_rejected_with_the_platforms_error() {
        let probe = SimulatorProbe::without_token(Settings::default()).await;
        let url = probe.simulator.url() + "/oauth/token";
        let form = [("grant_type", "client_credentials")];
        let answer = probe.http.post(&url).basic_auth("demo", Some("wrong")).form(&form).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body["error"], &body["description"]), (&json!("invalid_client"), &json!("authentication failed")));
        assert_eq!(probe.simulator.counters().token_failures, 1);
    }

    #[tokio::test]
    async fn the_platforms_calendar_may_be_an_hour_off() {
        let settings = Settings { clock_offset: 3_600, token_kind: TokenKind::Jwt, ..Settings::default() };
        let probe = SimulatorProbe::without_token(settings).await;
        let answer = probe.token_request().send().await.unwrap();
        let date = answer.headers()["date"].to_str().unwrap().to_owned();
        let expected = crate::clock::http_date(crate::clock::wall(3_600));
        assert_eq!(date[..20], expected[..20], "{date} and {expected}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["access_token"].as_str().unwrap().split('.').count(), 3);
    }

    #[tokio::test]
    async fn each_injected_failure_is_answered_once() {
        let retry = |value: &str| TokenFailure::TooManyRequests { retry_after: Some(value.to_owned()) };
        let table = [
            (retry("7"), 429, "retry-after", "7"),
            (retry("Mon, 04 May 2026 13:31:49 GMT"), 429, "retry-after", "Mon, 04 May 2026 13:31:49 GMT"),
            (retry("soon"), 429, "retry-after", "soon"),
            (TokenFailure::Status { status: 500 }, 500, "", ""),
            (TokenFailure::Status { status: 503 }, 503, "", ""),
            (TokenFailure::InvalidClient, 401, "", ""),
            (TokenFailure::InvalidGrant, 400, "", ""),
            (TokenFailure::Html, 200, "content-type", "text/html; charset=utf-8"),
            (
                TokenFailure::Redirect { to: "http://other.example/".to_owned() },
                302,
                "location",
                "http://other.example/",
            ),
        ];
        let probe = SimulatorProbe::without_token(Settings::default()).await;
        let count = table.len() as u64;
        for (failure, status, header, value) in table {
            probe.simulator.inject(PlatformFault::Token { failure: failure.clone(), times: 1 });
            let answer = probe.token_request().send().await.unwrap();
            assert_eq!(answer.status(), status, "{failure:?}");
            if !header.is_empty() {
                assert_eq!(answer.headers()[header], value, "{failure:?}");
            }
            assert_eq!(probe.token_request().send().await.unwrap().status(), 200);
        }
        assert_eq!(probe.simulator.counters().token_failures, count);
        assert_eq!(probe.simulator.counters().grants_total(), count);
    }

    #[tokio::test]
    async fn a_response_may_state_a_wrong_token_lifetime() {
        let probe = SimulatorProbe::without_token(Settings::default()).await;
        let spoiled = async |failure| {
            probe.simulator.inject(PlatformFault::Token { failure, times: 1 });
            probe.token_request().send().await.unwrap().text().await.unwrap()
        };
        for text in ["\"3600\"", "0", "-5", "1e300", "null"] {
            let answer = spoiled(TokenFailure::ExpiresIn { json: text.to_owned() }).await;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["expires_in"], serde_json::from_str::<Value>(text).unwrap());
        }
        assert!(!spoiled(TokenFailure::NoExpiresIn).await.contains("expires_in"));
        assert!(spoiled(TokenFailure::Huge).await.len() > 64 * 1024);
    }

    #[tokio::test]
    async fn a_response_may_be_late_or_missing() {
        let probe = SimulatorProbe::without_token(Settings::default()).await;
        let inject = |failure| probe.simulator.inject(PlatformFault::Token { failure, times: 1 });
        let hurried = || probe.token_request().timeout(Duration::from_millis(200)).send();
        inject(TokenFailure::Reset);
        let error = probe.token_request().send().await.unwrap_err();
        assert!(!error.is_timeout(), "{error}");
        inject(TokenFailure::Silent);
        assert!(hurried().await.unwrap_err().is_timeout());
        inject(TokenFailure::Slow { duration: Duration::from_millis(400) });
        assert!(hurried().await.unwrap_err().is_timeout());
        assert_eq!(probe.simulator.counters().token_failures, 3);
    }
}

//! What a request to the admin listener asks for. Pure: nothing is looked up, nothing is done.
//!
//! It refuses a wish from any page that is not this listener's own.

use std::fmt;

use hyper::{HeaderMap, Method, StatusCode, Uri};

use crate::{
    listener::{
        origin::{self, Origins},
        problem::Problem,
    },
    model::{AccountName, NameError, StreamName},
    upstream::Wish,
};

/// One thing that can be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Ready { every_stream_live: bool },
    Metrics,
    Status,
    Wish { stream: StreamName, wish: Wish },
    Refresh { account: AccountName },
}

/// Reads a request.
pub(super) fn route(method: &Method, uri: &Uri, headers: &HeaderMap, origins: &Origins) -> Result<Route, Problem> {
    let segments: Vec<&str> = uri.path().split('/').skip(1).collect();
    let route = match segments[..] {
        // Probes and scrapers reach us under any name; what they get is no secret.
        ["healthz"] => return only(&Method::GET, method, || Ok(Route::Health)),
        ["readyz"] => return only(&Method::GET, method, || ready(uri)),
        ["metrics"] => return only(&Method::GET, method, || Ok(Route::Metrics)),
        ["admin", "v1", "status"] => only(&Method::GET, method, || Ok(Route::Status)),
        ["admin", "v1", "streams", stream, "rotate"] => only(&Method::POST, method, || wish(stream, Wish::Rotate)),
        ["admin", "v1", "streams", stream, "pause"] => only(&Method::POST, method, || wish(stream, Wish::Pause)),
        ["admin", "v1", "streams", stream, "resume"] => only(&Method::POST, method, || wish(stream, Wish::Resume)),
        ["admin", "v1", "accounts", account, "refresh"] => only(&Method::POST, method, || {
            let account = account.parse().map_err(|error| no_name("account", &error))?;
            Ok(Route::Refresh { account })
        }),
        [..] => Err(Problem::no_such_path(uri.path())),
    };
    origins.admit(headers).map_err(|foreign| cross_origin(foreign.to_string()))?;
    if *method != Method::GET && !origin::is_own(headers) {
        return Err(cross_origin("a page of another origin may not ask for this".to_owned()));
    }
    route
}

fn only(allowed: &Method, method: &Method, route: impl FnOnce() -> Result<Route, Problem>) -> Result<Route, Problem> {
    if method == allowed {
        return route();
    }
    Err(Problem::wrong_method(if *allowed == Method::GET { "GET" } else { "POST" }))
}

fn ready(uri: &Uri) -> Result<Route, Problem> {
    match uri.query() {
        None | Some("") => Ok(Route::Ready { every_stream_live: false }),
        Some("streams=all") => Ok(Route::Ready { every_stream_live: true }),
        Some(_) => {
            let detail = "the only parameter here is streams=all";
            Err(Problem::new(StatusCode::BAD_REQUEST, "unknown-parameter", "Unknown parameter", detail))
        }
    }
}

fn wish(stream: &str, wish: Wish) -> Result<Route, Problem> {
    let stream = stream.parse().map_err(|error| no_name("stream", &error))?;
    Ok(Route::Wish { stream, wish })
}

fn cross_origin(detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "cross-origin", "Cross-origin request refused", detail)
}

/// The path names nothing that there is.
pub(super) fn unknown(what: &str, name: &impl fmt::Display) -> Problem {
    not_found(what, format!("there is no {what} {name}"))
}

fn no_name(what: &str, error: &NameError) -> Problem {
    not_found(what, error.to_string())
}

fn not_found(what: &str, detail: String) -> Problem {
    let (slug, title) =
        if what == "stream" { ("unknown-stream", "No such stream") } else { ("unknown-account", "No such account") };
    Problem::new(StatusCode::NOT_FOUND, slug, title, detail)
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderValue, ORIGIN};

    use super::*;

    fn ask(method: &str, path: &'static str, origin: Option<&'static str>) -> Result<Route, (u16, &'static str)> {
        let method = if method == "GET" { Method::GET } else { Method::POST };
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("127.0.0.1:9090"));
        headers.extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
        let origins = Origins { allowed: Vec::new(), loopback: true };
        route(&method, &Uri::from_static(path), &headers, &origins)
            .map_err(|problem| (problem.status.as_u16(), problem.slug))
    }

    #[test]
    fn each_path_has_its_method_and_its_meaning() {
        let queues: StreamName = "queues".parse().unwrap();
        let wish = |wish| Ok(Route::Wish { stream: queues.clone(), wish });
        for (method, path, meaning) in [
            ("GET", "/healthz", Ok(Route::Health)),
            ("GET", "/readyz", Ok(Route::Ready { every_stream_live: false })),
            ("GET", "/readyz?streams=all", Ok(Route::Ready { every_stream_live: true })),
            ("GET", "/readyz?stream=all", Err((400, "unknown-parameter"))),
            ("GET", "/metrics", Ok(Route::Metrics)),
            ("GET", "/admin/v1/status", Ok(Route::Status)),
            ("POST", "/admin/v1/streams/queues/rotate", wish(Wish::Rotate)),
            ("POST", "/admin/v1/streams/queues/pause", wish(Wish::Pause)),
            ("POST", "/admin/v1/streams/queues/resume", wish(Wish::Resume)),
            ("POST", "/admin/v1/accounts/acme/refresh", Ok(Route::Refresh { account: "acme".parse().unwrap() })),
            ("GET", "/admin/v1/streams/queues/rotate", Err((405, "method-not-allowed"))),
            ("POST", "/healthz", Err((405, "method-not-allowed"))),
            ("POST", "/admin/v1/streams/QUEUES/rotate", Err((404, "unknown-stream"))),
            ("POST", "/admin/v1/accounts/ACME/refresh", Err((404, "unknown-account"))),
            ("POST", "/admin/v1/streams/queues/explode", Err((404, "not-found"))),
            ("GET", "/", Err((404, "not-found"))),
        ] {
            assert_eq!(ask(method, path, None), meaning, "{method} {path}");
        }
    }

    #[test]
    fn a_wish_from_another_page_is_refused() {
        let refused = Err((403, "cross-origin"));
        for origin in ["https://evil.test", "http://127.0.0.1:8080", "http://localhost:9090", "null"] {
            assert_eq!(ask("POST", "/admin/v1/streams/queues/pause", Some(origin)), refused, "{origin}");
        }
        assert!(ask("POST", "/admin/v1/streams/queues/pause", Some("http://127.0.0.1:9090")).is_ok());
        assert_eq!(ask("GET", "/admin/v1/status", Some("https://evil.test")), refused);
    }
}

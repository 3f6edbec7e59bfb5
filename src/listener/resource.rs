//! Routing parts of both listeners: allowed methods, names in paths, unknown paths.
//!
//! HEAD is supported wherever GET is.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Path},
    http::{Uri, request::Parts},
    routing::MethodRouter,
};

use super::problem::HttpProblem;

/// The methods of a readable resource.
pub const READ: &str = "GET, HEAD";

/// A resource with these `methods`. Others get 405 with `allowed`, such as `"GET, HEAD"`.
pub fn allow_methods<S>(allowed: &'static str, methods: MethodRouter<S>) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let refuse = move || async move { HttpProblem::wrong_method(allowed) };
    methods.fallback(refuse)
}

/// The handler of unknown paths.
pub async fn not_found(uri: Uri) -> HttpProblem {
    HttpProblem::no_such_path(uri.path())
}

/// The name in a path, percent-decoded and not validated. If it is not UTF-8, the whole path, which is not a valid name.
#[derive(Debug)]
pub struct PathName(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let name = Path::from_request_parts(parts, state).await.map(|Path(name)| name);
        Ok(Self(name.unwrap_or_else(|_| parts.uri.path().to_owned())))
    }
}

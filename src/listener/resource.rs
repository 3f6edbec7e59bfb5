//! What the resources of both listeners have in common: which methods they answer, how names stand in their paths, and
//! what is said of paths that lead nowhere.
//!
//! HEAD is answered wherever GET is: the same head, and no body.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Path},
    http::{Uri, request::Parts},
    routing::MethodRouter,
};

use super::problem::HttpProblem;

/// What a resource that can be read answers to.
pub const READ: &str = "GET, HEAD";

/// A resource that answers `methods`, and tells every other which are `allowed`, as in `"GET, HEAD"`.
pub fn allow_methods<S>(allowed: &'static str, methods: MethodRouter<S>) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let refuse = move || async move { HttpProblem::wrong_method(allowed) };
    methods.fallback(refuse)
}

/// The handler of every path that is not routed.
pub async fn not_found(uri: Uri) -> HttpProblem {
    HttpProblem::no_such_path(uri.path())
}

/// The one name in a path, percent-decoded and not judged yet. Where it is no text, the whole path stands for it, which
/// is no name of anything.
#[derive(Debug)]
pub struct PathName(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let name = Path::from_request_parts(parts, state).await.map(|Path(name)| name);
        Ok(Self(name.unwrap_or_else(|_| parts.uri.path().to_owned())))
    }
}

//! REST calls as values, and the exchange of calls that ends in an endpoint.

use std::time::Duration;

use bytes::Bytes;

use super::{Endpoint, Failure};

/// A REST call. The shell adds the token and the account's API address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestRequest {
    pub method: Method,
    /// Path and query below the account's API address, or an absolute URL from the configuration.
    pub target: String,
    pub body: Option<String>,
}

/// The methods that platforms use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
}

impl RestRequest {
    /// A GET without a body.
    pub fn get(target: &str) -> Self {
        Self { method: Method::Get, target: target.to_owned(), body: None }
    }

    /// The name of the call in errors. It omits the query, which may be long or secret.
    pub fn call(&self) -> String {
        let method = match self.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        };
        format!("{method} {}", self.target.split(['?', '#']).next().unwrap_or_default())
    }
}

/// The answer to a REST call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestResponse {
    pub status: u16,
    /// `Retry-After`, counted from receipt.
    pub retry_after: Option<Duration>,
    /// The body. The shell bounds its size.
    pub body: Bytes,
}

/// The next step on the way to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreparationStep {
    Call(RestRequest),
    Ready(Endpoint),
    Failed(Failure),
}

/// A series of REST calls that ends in an [`Endpoint`].
pub trait RestConversation: std::fmt::Debug + Send + Sync {
    /// Takes the answer to the call of the last step.
    fn on_response(&mut self, answer: &RestResponse) -> PreparationStep;

    /// The call of the last step has no answer. `why`: the error.
    fn on_no_response(&mut self, why: String) -> PreparationStep;

    /// An endpoint that was created and can be used by the next attempt.
    fn spare(&self) -> Option<&Endpoint> {
        None
    }
}

/// The way to an endpoint.
#[derive(Debug)]
pub enum Preparation {
    /// The endpoint needs no call.
    Ready(Endpoint),
    Calls(Box<dyn RestConversation>),
}

impl Preparation {
    /// An endpoint that needs no call, as the first and only step.
    pub fn ready(endpoint: Endpoint) -> (Self, PreparationStep) {
        (Self::Ready(endpoint.clone()), PreparationStep::Ready(endpoint))
    }

    /// Takes the answer to the call of the last step.
    pub fn on_response(&mut self, answer: &RestResponse) -> PreparationStep {
        match self {
            Self::Calls(conversation) => conversation.on_response(answer),
            Self::Ready(endpoint) => PreparationStep::Ready(endpoint.clone()),
        }
    }

    /// The call of the last step has no answer. `why`: the error.
    pub fn on_no_response(&mut self, why: String) -> PreparationStep {
        match self {
            Self::Calls(conversation) => conversation.on_no_response(why),
            Self::Ready(_) => PreparationStep::Failed(Failure::Unreachable(why)),
        }
    }

    /// An endpoint that was created and can be used by the next attempt.
    pub fn spare(&self) -> Option<&Endpoint> {
        match self {
            Self::Calls(conversation) => conversation.spare(),
            Self::Ready(_) => None,
        }
    }
}

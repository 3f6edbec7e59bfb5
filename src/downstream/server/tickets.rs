//! Issues tickets: for clients that cannot send a header, such as a WebSocket or an event source in a browser.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    access::{AccessError, TICKET_TTL_MAX},
    error::ConsumerRequestError,
    request_body,
    routes::ConsumerState,
};
use crate::{
    listener::json::{APPLICATION_JSON, json_response},
    model::{ConsumerGrant, Span, StreamPattern},
};

/// The body of the request. Both keys are optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TicketRequest {
    streams: Option<Vec<String>>,
    ttl: Option<String>,
}

/// Issues a ticket with the rights of the caller, or with fewer.
pub(super) async fn issue(
    State(consumers): State<Arc<ConsumerState>>,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let (parts, body) = request.into_parts();
    let Some(access) = &consumers.access else { return Err(ConsumerRequestError::NoAuthentication) };
    let grant = consumers.grant(&parts).await?.ok_or(AccessError::Missing)?;
    let request = request_body::read::<TicketRequest>(body).await.map_err(|_| ConsumerRequestError::TicketRequest)?;
    let request = request.unwrap_or_default();
    let (grant, ttl) = (narrowed(grant, request.streams)?, lifetime(request.ttl.as_deref())?);
    let client = consumers.client(&parts).ok_or(AccessError::Missing)?;
    let ticket = access.issue_ticket(&grant, &client, ttl).await?;
    let issued = json!({ "ticket": ticket.expose(), "expires_in": ttl.as_secs() });
    Ok(json_response(StatusCode::CREATED, APPLICATION_JSON, &issued))
}

/// The grant with these streams only. The caller must have each of them.
fn narrowed(grant: ConsumerGrant, streams: Option<Vec<String>>) -> Result<ConsumerGrant, ConsumerRequestError> {
    let Some(streams) = streams else { return Ok(grant) };
    let parsed = streams.iter().map(|text| text.parse()).collect::<Result<Vec<StreamPattern>, _>>();
    let streams = parsed.ok().filter(|streams| !streams.is_empty()).ok_or(ConsumerRequestError::TicketRequest)?;
    let covered = |wanted: &StreamPattern| {
        grant.reads_all()
            || grant.streams.contains(wanted)
            || wanted.as_str().parse().is_ok_and(|stream| grant.may_read(&stream))
    };
    if !streams.iter().all(covered) {
        return Err(AccessError::Forbidden.into());
    }
    Ok(ConsumerGrant { streams, ..grant })
}

fn lifetime(text: Option<&str>) -> Result<Duration, ConsumerRequestError> {
    let Some(text) = text else { return Ok(TICKET_TTL_MAX) };
    let Span(ttl) = text.parse().map_err(|_| ConsumerRequestError::TicketRequest)?;
    let valid = (Duration::from_secs(1)..=TICKET_TTL_MAX).contains(&ttl);
    valid.then_some(ttl).ok_or(ConsumerRequestError::TicketRequest)
}

//! Requests of durable consumers: list, show, delete, acknowledge, seek, and the start of a reader.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    access::{AccessError, permits},
    error::ConsumerRequestError,
    query::{self, LogStartPoint, StartPoint},
    read_start::{self, OnTrimmed},
    request_body,
    routes::{ConsumerState, EventRead},
};
use crate::{
    clock,
    downstream::{
        consumers::{ConsumerError, ConsumerReader, ConsumerStatus},
        merged_reader::MergedReader,
    },
    listener::{
        json::{APPLICATION_JSON, json_response},
        resource::PathName,
    },
    model::{ConsumerGrant, ConsumerName, Cursor, Mark, StreamName},
};

const CURSOR_EXAMPLE: &str = r#"{"stream": "queues", "cursor": "4f2a-17"}"#;
const SEEK_EXAMPLE: &str =
    r#"{"stream": "queues", "to": "4f2a-17"}; "to" is a cursor, "first", "last", a time or a duration such as "10m""#;

#[derive(Serialize)]
struct ConsumerListResponse {
    consumers: Vec<ConsumerStatus>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorRequest {
    stream: StreamName,
    cursor: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeekRequest {
    stream: StreamName,
    to: String,
}

/// The cursor after a seek.
#[derive(Serialize)]
struct SeekResponse {
    stream: StreamName,
    cursor: Mark,
}

/// The consumers of which the caller may read all streams.
pub(super) async fn list(
    State(state): State<Arc<ConsumerState>>,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let grant = state.grant(&request.into_parts().0).await?;
    let mut consumers = state.durable.list().await?;
    consumers.retain(|consumer| covers(grant.as_ref(), consumer));
    Ok(json_response(StatusCode::OK, APPLICATION_JSON, &ConsumerListResponse { consumers }))
}

pub(super) async fn show(
    State(state): State<Arc<ConsumerState>>,
    PathName(name): PathName,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let grant = state.grant(&request.into_parts().0).await?;
    let status = permitted(&state, &name, grant.as_ref()).await?;
    Ok(json_response(StatusCode::OK, APPLICATION_JSON, &status))
}

pub(super) async fn delete(
    State(state): State<Arc<ConsumerState>>,
    PathName(name): PathName,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let grant = state.grant(&request.into_parts().0).await?;
    let status = permitted(&state, &name, grant.as_ref()).await?;
    state.durable.delete(&status.name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Acknowledges up to a cursor.
pub(super) async fn acknowledge(
    State(state): State<Arc<ConsumerState>>,
    PathName(name): PathName,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let (parts, body) = request.into_parts();
    let grant = state.grant(&parts).await?;
    let CursorRequest { stream, cursor } = read(body, CURSOR_EXAMPLE).await?;
    let status = permitted_in(&state, &name, &stream, grant.as_ref()).await?;
    let mark = parse_mark(&cursor, &stream).ok_or(ConsumerRequestError::ConsumerRequest(CURSOR_EXAMPLE))?;
    state.durable.acknowledge(&status.name, &stream, mark, None).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Moves a cursor in either direction.
pub(super) async fn seek(
    State(state): State<Arc<ConsumerState>>,
    PathName(name): PathName,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let (parts, body) = request.into_parts();
    let grant = state.grant(&parts).await?;
    let SeekRequest { stream, to } = read(body, SEEK_EXAMPLE).await?;
    let status = permitted_in(&state, &name, &stream, grant.as_ref()).await?;
    let start = seek_target(&to, &stream).ok_or(ConsumerRequestError::ConsumerRequest(SEEK_EXAMPLE))?;
    let log = state.logs.get(&stream).ok_or_else(|| ConsumerRequestError::UnknownStream(stream.clone()))?;
    let cursor = read_start::mark(log, start).await?;
    state.durable.seek(&status.name, &stream, cursor).await?;
    Ok(json_response(StatusCode::OK, APPLICATION_JSON, &SeekResponse { stream, cursor }))
}

fn seek_target(to: &str, stream: &StreamName) -> Option<LogStartPoint> {
    match to {
        "first" => Some(LogStartPoint::First),
        "last" => Some(LogStartPoint::Last),
        text => match parse_mark(text, stream) {
            Some(mark) => Some(LogStartPoint::After(mark)),
            None => query::parse_time(text, clock::wall()).map(LogStartPoint::Since),
        },
    }
}

fn parse_mark(text: &str, stream: &StreamName) -> Option<Mark> {
    match query::parse_cursor(text).ok()? {
        Cursor::Single(mark) => Some(mark),
        Cursor::Several(marks) => marks.get(stream).copied(),
    }
}

async fn read<T: DeserializeOwned>(body: Body, example: &'static str) -> Result<T, ConsumerRequestError> {
    let value = request_body::read(body).await.ok().flatten();
    value.ok_or(ConsumerRequestError::ConsumerRequest(example))
}

/// The consumer with this name, if the caller may read all its streams.
async fn permitted(
    state: &ConsumerState,
    name: &str,
    grant: Option<&ConsumerGrant>,
) -> Result<ConsumerStatus, ConsumerRequestError> {
    let reads_all = grant.is_none_or(ConsumerGrant::reads_all);
    let invalid = || ConsumerRequestError::InvalidConsumerName(query::shown(name));
    let consumer: ConsumerName = name.parse().map_err(|_| invalid())?;
    match state.durable.show(&consumer).await? {
        Some(status) if covers(grant, &status) => Ok(status),
        None if reads_all => Err(ConsumerError::Unknown(consumer).into()),
        // A caller who may not read everything does not learn which consumers exist.
        Some(_) | None => Err(AccessError::Forbidden.into()),
    }
}

/// The same, if the caller may also read `stream`.
async fn permitted_in(
    state: &ConsumerState,
    name: &str,
    stream: &StreamName,
    grant: Option<&ConsumerGrant>,
) -> Result<ConsumerStatus, ConsumerRequestError> {
    if grant.is_some_and(|grant| !grant.may_read(stream)) {
        return Err(AccessError::Forbidden.into());
    }
    permitted(state, name, grant).await
}

fn covers(grant: Option<&ConsumerGrant>, consumer: &ConsumerStatus) -> bool {
    grant.is_none_or(|grant| permits(grant, consumer.streams.keys()))
}

/// Rejects a caller who would take over a consumer of streams that it may not read.
pub(super) async fn check_readable(
    state: &ConsumerState,
    consumer: &ConsumerName,
    grant: Option<&ConsumerGrant>,
) -> Result<(), ConsumerRequestError> {
    if grant.is_none_or(ConsumerGrant::reads_all) {
        return Ok(());
    }
    match state.durable.show(consumer).await? {
        Some(status) if !covers(grant, &status) => Err(AccessError::Forbidden.into()),
        Some(_) | None => Ok(()),
    }
}

/// Takes over the name of a consumer, and opens a reader from its stored cursors. A cursor in the query acknowledges.
pub(super) async fn open(
    state: &ConsumerState,
    read: &EventRead,
    name: &ConsumerName,
    on_trimmed: OnTrimmed,
) -> Result<(MergedReader, ConsumerReader), ConsumerRequestError> {
    let start = &read.query.start;
    let (reader, mut stored) = state.durable.claim(name, &read.streams).await?;
    if let StartPoint::After(cursor) = start {
        for (stream, mark) in reader.marks(cursor)? {
            reader.acknowledge_page(&stream, mark).await?;
            stored.remove(&stream);
        }
    }
    let feed = read_start::feed(&state.logs, &read.streams, start, &stored, on_trimmed).await?;
    let marks: BTreeMap<StreamName, Mark> = feed.marks().map(|(stream, mark)| (stream.clone(), mark)).collect();
    for (stream, mark) in marks.iter().filter(|(stream, _)| !stored.contains_key(stream)) {
        reader.start_at(stream, *mark).await?;
    }
    Ok((feed, reader))
}

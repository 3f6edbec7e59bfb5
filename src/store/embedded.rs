//! The store on this machine: SQLite in one directory.

use std::sync::Arc;

use super::{Append, AppendError, LogState, ReadError};
use crate::model::{Batch, Offset, StreamName, Timestamp};

/// A handle to the embedded store.
#[derive(Debug, Clone)]
pub struct Embedded {}

#[expect(clippy::unused_async, reason = "signatures only")]
impl Embedded {
    pub(super) async fn open_log(&self, _stream: &StreamName) -> Result<LogState, AppendError> {
        unimplemented!()
    }
    pub(super) async fn append(&self, _append: Append) -> Result<(), AppendError> {
        unimplemented!()
    }
    pub(super) async fn read(&self, _: &StreamName, _: Offset, _: usize) -> Result<Vec<Arc<Batch>>, ReadError> {
        unimplemented!()
    }
    pub(super) async fn offset_before(&self, _: &StreamName, _: Timestamp) -> Result<Offset, ReadError> {
        unimplemented!()
    }
    pub(super) fn first(&self, _: &StreamName) -> Offset {
        unimplemented!()
    }
    pub(super) fn health(&self) -> Result<(), String> {
        unimplemented!()
    }
}

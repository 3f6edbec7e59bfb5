//! Decoders of the registry's keys and messages, for fuzzing: any value is read within bounds, or rejected.

use super::{
    membership,
    membership::MemberStatus,
    peer_message::{self, IncomingMessage},
    shared_settings::SharedSettings,
};
use crate::{protocol::lease::LeaseRecord, store::redis::lease_row::parse_record};

/// A lease record by its number, nonce and owner.
pub fn record(number: &str, nonce: &str, owner: Option<&str>) -> Option<LeaseRecord> {
    parse_record(&(Some(number.to_owned()), Some(nonce.to_owned()), owner.map(str::to_owned)))
}

/// A live replica by its id and the value of its membership.
pub fn member(id: &str, membership: &str) -> Option<MemberStatus> {
    membership::parse_member(id, membership)
}

/// The shared settings in a membership, encoded again.
pub fn shared_settings(text: &str) -> Option<String> {
    SharedSettings::parse(text).map(|settings| settings.to_string())
}

/// A message between replicas.
pub fn message(is_heartbeat: bool, text: &str) -> Option<IncomingMessage> {
    peer_message::parse_message(is_heartbeat, text)
}

//! Fences and owners as hashes in Redis store them.

use super::head;
use crate::{
    model::{Fence, ReplicaId},
    protocol::lease::LeaseRecord,
};

/// A lease record in a hash: number, nonce, owner.
pub(crate) type LeaseRow = (Option<String>, Option<String>, Option<String>);

/// A record; none where a field is not in the form that replicas write.
pub(crate) fn parse_record((number, nonce, holder): &LeaseRow) -> Option<LeaseRecord> {
    let holder = match holder.as_deref() {
        None | Some("") => None,
        Some(text) => Some(parse_replica(text)?),
    };
    let (number, nonce) = (number.as_deref()?, nonce.as_deref()?);
    let fence = read_fence(number, nonce).filter(|fence| is_canonical(*fence, number, nonce))?;
    Some(LeaseRecord { holder, fence })
}

/// A replica's id in hexadecimal.
pub(crate) fn parse_replica(text: &str) -> Option<ReplicaId> {
    u64::from_str_radix(text, 16).ok().map(ReplicaId)
}

/// A fence by its number in decimal and its nonce in hexadecimal.
pub(crate) fn read_fence(number: &str, nonce: &str) -> Option<Fence> {
    Some(Fence { number: head::parse_count(number)?, nonce: u128::from_str_radix(nonce, 16).ok()? })
}

/// Whether the texts are in the form that scripts and appends compare. Another form never matches.
fn is_canonical(fence: Fence, number: &str, nonce: &str) -> bool {
    let (expected_number, expected_nonce) = fence_texts(fence);
    number == expected_number && nonce == expected_nonce
}

/// The script that replaces a record. Its arguments begin with [`change_arguments`].
pub(crate) const CHANGE_SCRIPT: &str = include_str!("scripts/lease_change.lua");

/// The expected fence (none: there never was an owner) and the new record.
pub(crate) fn change_arguments(expected: Option<Fence>, record: &LeaseRecord) -> [String; 5] {
    let (number, nonce) = expected.map(fence_texts).unwrap_or_default();
    let (number_next, nonce_next) = fence_texts(record.fence);
    let owner = record.holder.map(|owner| owner.to_string()).unwrap_or_default();
    [number, nonce, number_next, nonce_next, owner]
}

/// Number and nonce of a fence as scripts and appends compare them.
pub(crate) fn fence_texts(fence: Fence) -> (String, String) {
    (fence.number.to_string(), format!("{:032x}", fence.nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "000000000000000000000000000000ff";

    #[test]
    fn a_record_may_have_no_owner() {
        let row = |holder: Option<&str>| (Some("4".to_owned()), Some(NONCE.to_owned()), holder.map(str::to_owned));
        let fence = Fence { number: 4, nonce: 255 };
        assert_eq!(parse_record(&row(None)), Some(LeaseRecord { holder: None, fence }));
        assert_eq!(parse_record(&row(Some(""))), Some(LeaseRecord { holder: None, fence }));
        assert_eq!(parse_record(&row(Some("2a"))), Some(LeaseRecord { holder: Some(ReplicaId(42)), fence }));
        assert_eq!(parse_record(&row(Some("xyz"))), None);
    }
}

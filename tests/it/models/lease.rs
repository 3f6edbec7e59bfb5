//! Leases: two and three replicas, the store, and the faults between them.
//!
//! Invariants: only the owner's appends are accepted; no offset is written twice, and no accepted entry is lost unless
//! the store lost it together with its position; a replica whose membership may have expired reads its lease before it
//! appends; no replica acquires the lease of a healthy owner; a handover goes only to a replica with a live session; and
//! from every state, a path leads to one in which every stream has an owner.

mod replica;
mod store;
mod world;

use self::world::{FaultBudget, ModelPlan};
use super::explore::explore;
use crate::harness::env_setting;

/// Limit of states, which covers most plans completely. `TRUNKLINE_STATES` overrides it.
const STATES_MAX: u64 = 140_000;

const NONE: FaultBudget =
    FaultBudget { crashes: 0, pauses: 0, cuts: 0, delays: 0, losses: 0, failovers: 0, drains: 0, joins: 0 };

#[test]
fn a_replica_that_was_suspended_reads_its_lease_before_it_appends() {
    check("nap", 2, 1, FaultBudget { pauses: 1, ..NONE });
    check("crash, nap", 2, 1, FaultBudget { crashes: 1, pauses: 1, ..NONE });
}

#[test]
fn late_replies_cause_no_wrong_state() {
    check("late", 2, 1, FaultBudget { delays: 1, ..NONE });
    check("late, crash", 2, 1, FaultBudget { delays: 1, crashes: 1, ..NONE });
    check("loss, join", 2, 1, FaultBudget { losses: 1, joins: 1, ..NONE });
    check("cut", 2, 1, FaultBudget { cuts: 1, ..NONE });
}

#[test]
fn a_store_that_loses_writes_never_gives_two_holders_the_same_fence() {
    check("failover", 2, 1, FaultBudget { failovers: 1, ..NONE });
    check("failover, nap", 2, 1, FaultBudget { failovers: 1, pauses: 1, ..NONE });
}

#[test]
fn a_stream_is_handed_over_only_to_a_ready_replica() {
    check("two streams, join", 2, 2, FaultBudget { joins: 1, ..NONE });
    check("two streams, drain", 2, 2, FaultBudget { drains: 1, ..NONE });
    check("drain, crash", 2, 1, FaultBudget { drains: 1, crashes: 1, ..NONE });
}

#[test]
fn three_replicas_find_a_holder_for_every_stream() {
    check("three", 3, 1, NONE);
    check("three, crash", 3, 1, FaultBudget { crashes: 1, ..NONE });
    check("three, join", 3, 1, FaultBudget { joins: 1, ..NONE });
}

#[expect(clippy::print_stdout, reason = "the coverage is the result of a model")]
fn check(faults_named: &str, replicas: u8, streams: usize, faults: FaultBudget) {
    let states_max = env_setting("TRUNKLINE_STATES").unwrap_or(STATES_MAX) as usize;
    match explore(&ModelPlan { replicas, streams, entries: 2 - streams, faults }, states_max) {
        Ok(extent) => println!("{faults_named}: {extent}"),
        Err(found) => panic!("{faults_named}: {found}"),
    }
}

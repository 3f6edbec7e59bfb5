//! Leases: two and three replicas, the store, and what can go wrong between them.
//!
//! In every state it holds that an append is accepted only from the record's holder; that no place in a log is written
//! twice and nothing accepted is lost, unless the store forgot it together with its position; that a replica whose
//! membership may have ended looks before it appends; that nobody takes from a holder that is well, or is given a
//! stream before its session is live; and that a way leads to where every stream has a holder again.

mod replica;
mod store;
mod world;

use self::world::{FaultBudget, ModelPlan};
use super::explore::explore;
use crate::harness::env_setting;

/// Enough for most plans to be seen whole; the others are seen as far as that. `TRUNKLINE_STATES` says how many.
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

#[expect(clippy::print_stdout, reason = "how much was seen is the point of a model")]
fn check(faults_named: &str, replicas: u8, streams: usize, faults: FaultBudget) {
    let states_max = env_setting("TRUNKLINE_STATES").unwrap_or(STATES_MAX) as usize;
    match explore(&ModelPlan { replicas, streams, entries: 2 - streams, faults }, states_max) {
        Ok(extent) => println!("{faults_named}: {extent}"),
        Err(found) => panic!("{faults_named}: {found}"),
    }
}

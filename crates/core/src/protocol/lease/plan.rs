//! Which replica should hold which stream. Replicas that see the same members and records compute the same plan. The
//! plan moves as few streams as possible.

use std::{cmp::Reverse, collections::BTreeMap};

use super::messages::Member;
use crate::model::{ReplicaId, StreamName, stable_hash};

/// The current holder of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assignment {
    /// A live replica holds it.
    Held(ReplicaId),
    /// No live replica holds it.
    Vacant,
}

/// The changes that the plan requires.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RebalancePlan {
    /// Vacant streams, and the replica that takes each.
    pub(super) acquisitions: Vec<(StreamName, ReplicaId)>,
    /// Streams that one replica hands to another.
    pub(super) transfers: Vec<Transfer>,
}

/// A stream that moves from one replica to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) stream: StreamName,
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
}

/// Gives each vacant stream a holder, and balances the members: the numbers of their streams differ by at most one, as
/// far as their limits allow.
pub(super) fn plan(members: &[Member], assignments: &BTreeMap<StreamName, Assignment>) -> RebalancePlan {
    let mut table = AssignmentTable::of(members, assignments);
    for (stream, _) in assignments.iter().filter(|(_, assignment)| **assignment == Assignment::Vacant) {
        if let Some(taker) = table.taker(stream) {
            table.held.entry(taker).or_default().push(stream);
        }
    }
    while let Some((from, to)) = table.next_transfer() {
        table.transfer(from, to);
    }
    table.changes_from(assignments)
}

/// The standby of a stream: one other member, the same on every replica.
pub(super) fn standby(stream: &StreamName, holder: ReplicaId, members: &[Member]) -> Option<ReplicaId> {
    let others = members.iter().filter(|member| member.limit > 0 && member.replica != holder);
    others.map(|member| member.replica).max_by_key(|replica| (weight(stream, *replica), *replica))
}

/// The streams of each member while the plan is computed.
struct AssignmentTable<'a> {
    members: &'a [Member],
    held: BTreeMap<ReplicaId, Vec<&'a StreamName>>,
    fair_share: usize,
}

impl<'a> AssignmentTable<'a> {
    fn of(members: &'a [Member], assignments: &'a BTreeMap<StreamName, Assignment>) -> Self {
        let mut held: BTreeMap<_, Vec<_>> = members.iter().map(|member| (member.replica, Vec::new())).collect();
        for (stream, assignment) in assignments {
            if let Assignment::Held(holder) = assignment {
                held.entry(*holder).or_default().push(stream);
            }
        }
        let open = members.iter().filter(|member| member.limit > 0).count();
        Self { members, held, fair_share: assignments.len().div_ceil(open.max(1)) }
    }

    fn len(&self, replica: ReplicaId) -> usize {
        self.held.get(&replica).map_or(0, Vec::len)
    }

    /// The member with the highest score for a vacant stream, among those below their share, else among those with
    /// room.
    fn taker(&self, stream: &StreamName) -> Option<ReplicaId> {
        let below = |most: usize| {
            let open = self.members.iter().filter(move |member| self.len(member.replica) < member.limit.min(most));
            open.map(|member| member.replica).max_by_key(|replica| (weight(stream, *replica), *replica))
        };
        below(self.fair_share).or_else(|| below(usize::MAX))
    }

    /// The fullest member (one beyond its limit first) and the emptiest, if a stream should move between them.
    fn next_transfer(&self) -> Option<(ReplicaId, ReplicaId)> {
        let len = |member: &&Member| self.len(member.replica);
        let excess = |member: &&Member| len(member).saturating_sub(member.limit);
        let rank = |member: &&Member| (excess(member), len(member), Reverse(member.replica));
        let giver = self.members.iter().max_by_key(rank)?;
        let open = self.members.iter().filter(|member| len(member) < member.limit && member.replica != giver.replica);
        let receiver = open.min_by_key(|member| (len(member), member.replica))?;
        let uneven = excess(&giver) > 0 || len(&giver) >= len(&receiver) + 2;
        uneven.then_some((giver.replica, receiver.replica))
    }

    /// Moves the stream with the highest score for the receiver.
    fn transfer(&mut self, from: ReplicaId, to: ReplicaId) {
        let held = self.held.entry(from).or_default();
        let drawn = (0..held.len()).max_by_key(|index| weight(held[*index], to)).unwrap_or_default();
        let stream = held.swap_remove(drawn);
        self.held.entry(to).or_default().push(stream);
    }

    fn changes_from(self, assignments: &BTreeMap<StreamName, Assignment>) -> RebalancePlan {
        let mut plan = RebalancePlan::default();
        for (to, streams) in self.held {
            for stream in streams {
                match assignments.get(stream) {
                    Some(Assignment::Held(from)) if *from == to => (),
                    Some(Assignment::Held(from)) => {
                        plan.transfers.push(Transfer { stream: stream.clone(), from: *from, to });
                    }
                    Some(Assignment::Vacant) | None => plan.acquisitions.push((stream.clone(), to)),
                }
            }
        }
        plan
    }
}

/// The score of a replica for a stream (FNV-1a over both, mixed once more): pseudo-random, and the same on every
/// replica.
fn weight(stream: &StreamName, replica: ReplicaId) -> u64 {
    let hash = stable_hash(stream.as_str().bytes().chain(replica.0.to_le_bytes()));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vacant_streams_are_spread_and_held_streams_stay() {
        let assignments =
            assignments(&[Assignment::Held(ReplicaId(1)), Assignment::Vacant, Assignment::Vacant, Assignment::Vacant]);
        let plan = plan(&members(&[9, 9]), &assignments);
        assert_eq!(plan.transfers, []);
        let to_second = plan.acquisitions.iter().filter(|(_, taker)| *taker == ReplicaId(2)).count();
        assert_eq!((plan.acquisitions.len(), to_second), (3, 2));
    }

    #[test]
    fn a_new_member_gets_its_share() {
        let plan = plan(&members(&[9, 9, 9]), &held_by(&[1, 1, 2, 2]));
        assert_eq!(plan.acquisitions, []);
        assert_eq!(plan.transfers.iter().map(|step| (step.from.0, step.to.0)).collect::<Vec<_>>(), [(1, 3)]);
    }

    #[test]
    fn a_draining_member_hands_everything_over() {
        let plan = plan(&members(&[0, 9]), &held_by(&[1, 1, 1]));
        assert_eq!(plan.transfers.len(), 3);
    }

    #[test]
    fn limits_hold_and_streams_beyond_them_stay_vacant() {
        let plan = plan(&members(&[1, 1]), &assignments(&[Assignment::Vacant; 3]));
        assert_eq!(plan.acquisitions.len(), 2);
    }

    #[test]
    fn the_standby_is_another_member_with_capacity() {
        let stream = "a".parse().unwrap();
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9])), None);
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9, 0])), None);
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9, 0, 9])), Some(ReplicaId(3)));
    }

    #[test]
    fn streams_are_spread_evenly_over_replicas() {
        let mut counts = [0; 3];
        for number in 0..3_000 {
            let stream = format!("stream-{number}").parse().unwrap();
            counts[usize::try_from(standby(&stream, ReplicaId(9), &members(&[1, 1, 1])).unwrap().0).unwrap() - 1] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn an_executed_plan_leaves_nothing_to_do(
            limits in prop::collection::vec(0_usize..6, 1..6),
            holders in prop::collection::vec(0_u64..8, 0..16),
        ) {
            let members = members(&limits);
            let mut assignments = held_by(&holders);
            for assignment in assignments.values_mut() {
                if matches!(assignment, Assignment::Held(holder) if members.iter().all(|member| member.replica != *holder)) {
                    *assignment = Assignment::Vacant;
                }
            }
            let first = plan(&members, &assignments);
            prop_assert!(first.transfers.iter().all(|step| step.from != step.to));
            let takes = first.acquisitions.iter().map(|(stream, to)| (stream, to));
            for (stream, to) in takes.chain(first.transfers.iter().map(|step| (&step.stream, &step.to))) {
                assignments.insert(stream.clone(), Assignment::Held(*to));
            }
            prop_assert_eq!(plan(&members, &assignments), RebalancePlan::default());
            for member in &members {
                let len = assignments.values().filter(|assignment| **assignment == Assignment::Held(member.replica)).count();
                let room = members.iter().any(|other| {
                    assignments.values().filter(|assignment| **assignment == Assignment::Held(other.replica)).count() < other.limit
                });
                prop_assert!(len <= member.limit || !room);
            }
        }
    }

    fn members(limits: &[usize]) -> Vec<Member> {
        (1..).zip(limits).map(|(id, limit)| Member { replica: ReplicaId(id), limit: *limit }).collect()
    }

    fn held_by(holders: &[u64]) -> BTreeMap<StreamName, Assignment> {
        assignments(&holders.iter().map(|holder| Assignment::Held(ReplicaId(*holder))).collect::<Vec<_>>())
    }

    fn assignments(assignments: &[Assignment]) -> BTreeMap<StreamName, Assignment> {
        assignments
            .iter()
            .enumerate()
            .map(|(number, assignment)| (format!("s{number}").parse().unwrap(), *assignment))
            .collect()
    }
}

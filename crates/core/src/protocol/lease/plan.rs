//! Who should hold which stream: the same answer on every replica that sees the same members and records, so that
//! replicas do not fight. It moves as little as it can.

use std::{cmp::Reverse, collections::BTreeMap};

use super::Member;
use crate::model::{ReplicaId, StreamName, stable_hash};

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A live replica has it.
    Held(ReplicaId),
    /// Nobody who lives has it.
    Vacant,
}

/// What should change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Vacant streams, and who takes each.
    pub(super) takes: Vec<(StreamName, ReplicaId)>,
    /// Streams that one replica hands to another.
    pub(super) moves: Vec<Move>,
}

/// A stream that goes from one replica to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) stream: StreamName,
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
}

/// Gives each vacant stream a holder, and levels what the members hold: in the end no two differ by more than one, as
/// far as their limits allow.
pub(super) fn plan(members: &[Member], places: &BTreeMap<StreamName, Place>) -> Plan {
    let mut table = Table::of(members, places);
    for (stream, _) in places.iter().filter(|(_, place)| **place == Place::Vacant) {
        if let Some(taker) = table.taker(stream) {
            table.held.entry(taker).or_default().push(stream);
        }
    }
    while let Some((from, to)) = table.uneven() {
        table.hand_over(from, to);
    }
    table.compared_with(places)
}

/// Who follows the holder of a stream, ready to take it: one other member, the same seen from everywhere.
pub(super) fn standby(stream: &StreamName, holder: ReplicaId, members: &[Member]) -> Option<ReplicaId> {
    let others = members.iter().filter(|member| member.limit > 0 && member.replica != holder);
    others.map(|member| member.replica).max_by_key(|replica| (weight(stream, *replica), *replica))
}

/// Who holds what while the plan is made.
struct Table<'a> {
    members: &'a [Member],
    held: BTreeMap<ReplicaId, Vec<&'a StreamName>>,
    share: usize,
}

impl<'a> Table<'a> {
    fn of(members: &'a [Member], places: &'a BTreeMap<StreamName, Place>) -> Self {
        let mut held: BTreeMap<_, Vec<_>> = members.iter().map(|member| (member.replica, Vec::new())).collect();
        for (stream, place) in places {
            if let Place::Held(holder) = place {
                held.entry(*holder).or_default().push(stream);
            }
        }
        let open = members.iter().filter(|member| member.limit > 0).count();
        Self { members, held, share: places.len().div_ceil(open.max(1)) }
    }

    fn len(&self, replica: ReplicaId) -> usize {
        self.held.get(&replica).map_or(0, Vec::len)
    }

    /// The member that a vacant stream draws, among those below their share; else among those with any room.
    fn taker(&self, stream: &StreamName) -> Option<ReplicaId> {
        let below = |most: usize| {
            let open = self.members.iter().filter(move |member| self.len(member.replica) < member.limit.min(most));
            open.map(|member| member.replica).max_by_key(|replica| (weight(stream, *replica), *replica))
        };
        below(self.share).or_else(|| below(usize::MAX))
    }

    /// The fullest member (first one beyond its limit) and the emptiest, if a stream should go from one to the other.
    fn uneven(&self) -> Option<(ReplicaId, ReplicaId)> {
        let len = |member: &&Member| self.len(member.replica);
        let excess = |member: &&Member| len(member).saturating_sub(member.limit);
        let rank = |member: &&Member| (excess(member), len(member), Reverse(member.replica));
        let giver = self.members.iter().max_by_key(rank)?;
        let open = self.members.iter().filter(|member| len(member) < member.limit && member.replica != giver.replica);
        let receiver = open.min_by_key(|member| (len(member), member.replica))?;
        let uneven = excess(&giver) > 0 || len(&giver) >= len(&receiver) + 2;
        uneven.then_some((giver.replica, receiver.replica))
    }

    /// Moves the stream that draws the receiver most.
    fn hand_over(&mut self, from: ReplicaId, to: ReplicaId) {
        let held = self.held.entry(from).or_default();
        let drawn = (0..held.len()).max_by_key(|index| weight(held[*index], to)).unwrap_or_default();
        let stream = held.swap_remove(drawn);
        self.held.entry(to).or_default().push(stream);
    }

    fn compared_with(self, places: &BTreeMap<StreamName, Place>) -> Plan {
        let mut plan = Plan::default();
        for (to, streams) in self.held {
            for stream in streams {
                match places.get(stream) {
                    Some(Place::Held(from)) if *from == to => (),
                    Some(Place::Held(from)) => plan.moves.push(Move { stream: stream.clone(), from: *from, to }),
                    Some(Place::Vacant) | None => plan.takes.push((stream.clone(), to)),
                }
            }
        }
        plan
    }
}

/// How much a stream draws a replica (FNV-1a over both, mixed once more): as good as random, and the same everywhere.
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
    fn vacant_streams_are_spread_and_each_member_keeps_what_it_has() {
        let places = places(&[Place::Held(ReplicaId(1)), Place::Vacant, Place::Vacant, Place::Vacant]);
        let plan = plan(&members(&[9, 9]), &places);
        assert_eq!(plan.moves, []);
        let to_second = plan.takes.iter().filter(|(_, taker)| *taker == ReplicaId(2)).count();
        assert_eq!((plan.takes.len(), to_second), (3, 2));
    }

    #[test]
    fn one_that_joins_is_handed_its_share() {
        let plan = plan(&members(&[9, 9, 9]), &held_by(&[1, 1, 2, 2]));
        assert_eq!(plan.takes, []);
        assert_eq!(plan.moves.iter().map(|step| (step.from.0, step.to.0)).collect::<Vec<_>>(), [(1, 3)]);
    }

    #[test]
    fn one_that_takes_no_more_hands_everything_over() {
        let plan = plan(&members(&[0, 9]), &held_by(&[1, 1, 1]));
        assert_eq!(plan.moves.len(), 3);
    }

    #[test]
    fn a_limit_is_kept_and_what_nobody_has_room_for_stays_vacant() {
        let plan = plan(&members(&[1, 1]), &places(&[Place::Vacant; 3]));
        assert_eq!(plan.takes.len(), 2);
    }

    #[test]
    fn the_standby_is_another_one_that_has_room() {
        let stream = "a".parse().unwrap();
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9])), None);
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9, 0])), None);
        assert_eq!(standby(&stream, ReplicaId(1), &members(&[9, 0, 9])), Some(ReplicaId(3)));
    }

    #[test]
    fn streams_draw_replicas_evenly() {
        let mut counts = [0; 3];
        for number in 0..3_000 {
            let stream = format!("stream-{number}").parse().unwrap();
            counts[usize::try_from(standby(&stream, ReplicaId(9), &members(&[1, 1, 1])).unwrap().0).unwrap() - 1] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn a_plan_that_was_carried_out_leaves_nothing_to_do(
            limits in prop::collection::vec(0_usize..6, 1..6),
            holders in prop::collection::vec(0_u64..8, 0..16),
        ) {
            let members = members(&limits);
            let mut places = held_by(&holders);
            for place in places.values_mut() {
                if matches!(place, Place::Held(holder) if members.iter().all(|member| member.replica != *holder)) {
                    *place = Place::Vacant;
                }
            }
            let first = plan(&members, &places);
            prop_assert!(first.moves.iter().all(|step| step.from != step.to));
            let takes = first.takes.iter().map(|(stream, to)| (stream, to));
            for (stream, to) in takes.chain(first.moves.iter().map(|step| (&step.stream, &step.to))) {
                places.insert(stream.clone(), Place::Held(*to));
            }
            prop_assert_eq!(plan(&members, &places), Plan::default());
            for member in &members {
                let len = places.values().filter(|place| **place == Place::Held(member.replica)).count();
                let room = members.iter().any(|other| {
                    places.values().filter(|place| **place == Place::Held(other.replica)).count() < other.limit
                });
                prop_assert!(len <= member.limit || !room);
            }
        }
    }

    fn members(limits: &[usize]) -> Vec<Member> {
        (1..).zip(limits).map(|(id, limit)| Member { replica: ReplicaId(id), limit: *limit }).collect()
    }

    fn held_by(holders: &[u64]) -> BTreeMap<StreamName, Place> {
        places(&holders.iter().map(|holder| Place::Held(ReplicaId(*holder))).collect::<Vec<_>>())
    }

    fn places(places: &[Place]) -> BTreeMap<StreamName, Place> {
        places.iter().enumerate().map(|(number, place)| (format!("s{number}").parse().unwrap(), *place)).collect()
    }
}

//! Offsets, epochs, and the cursors of readers.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{NameError, StreamName};

/// The dense number of a log entry. The first entry is 1; [`Offset::START`] is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Offset(pub u64);

impl Offset {
    /// Before the first entry. Reading after it reads the whole log.
    pub const START: Self = Self(0);

    /// The offset of the next entry. It saturates; no store accepts such an offset.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The offset before this one. [`Offset::START`] stays.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The incarnation of a log. A log that was wiped or rolled back gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a log without any append so far. It has no entries.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// The address of one log entry, written `4f2a-17`: also the `id` of its event, and the cursor of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    pub epoch: Epoch,
    pub offset: Offset,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

/// The text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("{0:?} is not a cursor: expected an event's id such as 4f2a-17")]
    Mark(String),
    #[error("{0:?} is not a cursor over several streams: expected queues:4f2a-17,agents:9c01-3")]
    Pair(String),
    #[error("in a cursor over several streams {0}")]
    Name(#[from] NameError),
    #[error("the cursor names the stream {0} more than once")]
    Duplicate(StreamName),
}

/// The most digits that fit the type. A longer cursor is refused instead of wrapped.
const EPOCH_DIGITS_MAX: usize = 8;

impl FromStr for Mark {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let refused = || CursorError::Mark(text.chars().take(80).collect());
        let (epoch, offset) = text.split_once('-').ok_or_else(refused)?;
        let hex = !epoch.is_empty() && epoch.len() <= EPOCH_DIGITS_MAX && epoch.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = !offset.is_empty() && offset.bytes().all(|b| b.is_ascii_digit());
        if !hex || !digits {
            return Err(refused());
        }
        let epoch = u32::from_str_radix(epoch, 16).map_err(|_| refused())?;
        let offset = offset.parse().map_err(|_| refused())?;
        Ok(Self { epoch: Epoch(epoch), offset: Offset(offset) })
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The last entry that a reader has processed, per stream. A single stream needs no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// `4f2a-17`: the only stream of the request.
    Single(Mark),
    /// `queues:4f2a-17,agents:9c01-3`.
    Several(BTreeMap<StreamName, Mark>),
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if !text.contains(':') {
            return text.parse().map(Self::Single);
        }
        let mut marks = BTreeMap::new();
        for pair in text.split(',') {
            let (name, mark) =
                pair.split_once(':').ok_or_else(|| CursorError::Pair(text.chars().take(80).collect()))?;
            let name: StreamName = name.parse()?;
            if marks.insert(name.clone(), mark.parse()?).is_some() {
                return Err(CursorError::Duplicate(name));
            }
        }
        Ok(Self::Several(marks))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(mark) => mark.fmt(f),
            Self::Several(marks) => {
                for (index, (name, mark)) in marks.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{name}:{mark}")?;
                }
                Ok(())
            }
        }
    }
}

/// The epochs of a log with their last offsets, oldest first. A cursor of an older epoch is valid up to the start of the
/// next one (the leader-epoch rule of Kafka).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    current: Epoch,
    earlier: Vec<(Epoch, Offset)>,
}

/// Whether a mark is valid in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorValidity {
    /// Reading continues after this offset.
    Valid(Offset),
    /// It is after the last entry of its epoch. It must not mean "latest".
    AheadOfLog,
    /// This log does not have its epoch.
    UnknownEpoch,
}

/// A lineage with fewer ended epochs is complete. A longer one may lack the oldest epochs.
const TRUNCATED_LEN: usize = 32;

/// The most ended epochs that an embedded store keeps.
const EARLIER_EPOCHS_MAX: usize = 64;

impl Lineage {
    /// A log with one epoch.
    pub const fn new(current: Epoch) -> Self {
        Self { current, earlier: Vec::new() }
    }

    /// A log whose earlier epochs have these last offsets, oldest first.
    pub fn with_earlier(current: Epoch, earlier: Vec<(Epoch, Offset)>) -> Self {
        Self { current, earlier }
    }

    /// Starts the next epoch after `last`. Drops the oldest epochs beyond the limit.
    pub fn start_epoch(&self, next: Epoch, last: Offset) -> Self {
        let mut earlier = self.earlier.clone();
        if last > Offset::START {
            earlier.push((self.current, last));
        }
        earlier.drain(..earlier.len().saturating_sub(EARLIER_EPOCHS_MAX));
        Self { current: next, earlier }
    }

    /// The ended epochs with their last offsets, oldest first.
    pub fn earlier(&self) -> &[(Epoch, Offset)] {
        &self.earlier
    }

    /// The epoch of the entry at `offset`, and its last offset if it has ended.
    pub fn epoch_of(&self, offset: Offset) -> (Epoch, Option<Offset>) {
        let ended = self.earlier.iter().find(|(_, end)| offset <= *end);
        ended.map_or((self.current, None), |(epoch, end)| (*epoch, Some(*end)))
    }

    /// The epoch of new entries.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// Whether `mark` is valid in a log whose last entry is `last`.
    pub fn validity(&self, mark: Mark, last: Offset) -> CursorValidity {
        let end = if mark.epoch == self.current { Some(last) } else { self.end_of(mark.epoch) };
        match end {
            Some(end) if mark.offset <= end => CursorValidity::Valid(mark.offset),
            Some(_) => CursorValidity::AheadOfLog,
            None => CursorValidity::UnknownEpoch,
        }
    }

    /// The last offset up to `offset` that this lineage and a later one share. Entries after it were rolled back. None if
    /// they share no epoch: the log was wiped.
    pub fn common_offset(&self, later: &Self, offset: Offset) -> Option<Offset> {
        if offset == Offset::START || self.current == later.current {
            return Some(offset);
        }
        let (reached, _) = self.epoch_of(offset);
        let ended = self.earlier.iter().copied().take_while(|(_, end)| *end < offset);
        let shared = ended.chain([(reached, offset)]).filter_map(|(epoch, end)| match epoch == later.current {
            true => Some(end),
            false => later.end_of(epoch).map(|later| later.min(end)),
        });
        shared.max()
    }

    /// Whether the entry at `offset` can belong to `epoch`. If not, this lineage is outdated.
    pub fn contains(&self, epoch: Epoch, offset: Offset) -> bool {
        match self.earlier.first() {
            Some((_, end)) if offset <= *end && self.earlier.len() >= TRUNCATED_LEN => true,
            Some(_) | None => self.epoch_of(offset).0 == epoch,
        }
    }

    /// The last offset of an epoch that has ended.
    fn end_of(&self, epoch: Epoch) -> Option<Offset> {
        let ended = self.earlier.iter().find(|(ended, _)| *ended == epoch);
        ended.map(|(_, end)| *end).or((epoch == Epoch::NONE).then_some(Offset::START))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_and_written_in_both_forms() {
        for text in ["4f2a-17", "agents:9c01-3,queues:4f2a-17", "0001-0"] {
            let cursor: Cursor = text.parse().unwrap();
            assert_eq!(cursor.to_string(), text);
        }
    }

    #[test]
    fn a_malformed_cursor_is_rejected() {
        for text in [
            "",
            "17",
            "-17",
            "4f2a-",
            "4f2a--1",
            "+4-1",
            "4f2a-99999999999999999999",
            "123456789-1",
            "q:",
            "q:4f2a-1,",
            "Q:4f2a-1",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cursor_is_valid_up_to_the_end_of_its_epoch() {
        let lineage = Lineage::new(Epoch(7));
        let at = |epoch, offset| Mark { epoch: Epoch(epoch), offset: Offset(offset) };
        assert_eq!(lineage.validity(at(7, 5), Offset(9)), CursorValidity::Valid(Offset(5)));
        assert_eq!(lineage.validity(at(7, 10), Offset(9)), CursorValidity::AheadOfLog);
        assert_eq!(lineage.validity(at(8, 1), Offset(9)), CursorValidity::UnknownEpoch);
    }

    #[test]
    fn cursors_of_an_ended_epoch_stay_valid_up_to_its_last_entry() {
        let earlier = vec![(Epoch(7), Offset(5)), (Epoch(8), Offset(5)), (Epoch(9), Offset(8))];
        let lineage = Lineage::with_earlier(Epoch(10), earlier);
        let epochs = [1, 5, 6, 8, 9].map(|offset| lineage.epoch_of(Offset(offset)).0.0);
        assert_eq!(epochs, [7, 7, 9, 9, 10]);
        assert_eq!(lineage.epoch_of(Offset(6)), (Epoch(9), Some(Offset(8))));
        assert_eq!(lineage.epoch_of(Offset(9)), (Epoch(10), None));
        let at = |epoch, offset| Mark { epoch: Epoch(epoch), offset: Offset(offset) };
        assert_eq!(lineage.validity(at(7, 5), Offset(9)), CursorValidity::Valid(Offset(5)));
        assert_eq!(lineage.validity(at(7, 6), Offset(9)), CursorValidity::AheadOfLog);
        assert_eq!(lineage.validity(at(10, 9), Offset(9)), CursorValidity::Valid(Offset(9)));
    }

    #[test]
    fn a_new_epoch_keeps_cursors_of_earlier_epochs_valid() {
        let mut lineage = Lineage::new(Epoch(1)).start_epoch(Epoch(2), Offset::START);
        assert_eq!(lineage, Lineage::new(Epoch(2)), "nothing had an id of the first");
        for epoch in 3..=70 {
            lineage = lineage.start_epoch(Epoch(epoch), Offset(u64::from(epoch)));
        }
        let mark = |epoch, offset| Mark { epoch: Epoch(epoch), offset: Offset(offset) };
        for (mark, expected) in [
            (mark(69, 70), CursorValidity::Valid(Offset(70))),
            (mark(69, 71), CursorValidity::AheadOfLog),
            (mark(6, 7), CursorValidity::Valid(Offset(7))),
            (mark(5, 6), CursorValidity::UnknownEpoch),
        ] {
            assert_eq!(lineage.validity(mark, Offset(99)), expected, "{mark}");
        }
        assert_eq!(lineage.earlier().len(), EARLIER_EPOCHS_MAX);
    }

    #[test]
    fn the_cursor_of_an_empty_log_is_valid_in_every_log() {
        let nothing = Mark { epoch: Epoch::NONE, offset: Offset::START };
        for lineage in [Lineage::new(Epoch::NONE), Lineage::new(Epoch(7))] {
            assert_eq!(lineage.validity(nothing, Offset(9)), CursorValidity::Valid(Offset::START));
        }
        let crafted = Mark { offset: Offset(1), ..nothing };
        assert_eq!(Lineage::new(Epoch(7)).validity(crafted, Offset(9)), CursorValidity::AheadOfLog);
    }

    #[test]
    fn two_lineages_share_entries_up_to_the_end_of_their_last_common_epoch() {
        let lineage = |current, earlier: &[(u32, u64)]| {
            let earlier = earlier.iter().map(|(epoch, end)| (Epoch(*epoch), Offset(*end)));
            Lineage::with_earlier(Epoch(current), earlier.collect())
        };
        let first = lineage(7, &[]);
        let second = lineage(8, &[(7, 5)]);
        for (before, later, offset, expected) in [
            (&first, &first, 9, Some(9)),
            (&first, &second, 3, Some(3)),
            (&first, &second, 5, Some(5)),
            (&first, &second, 8, Some(5)),
            // An epoch was missed.
            (&first, &lineage(10, &[(7, 5), (9, 6)]), 8, Some(5)),
            (&second, &lineage(9, &[(7, 5), (8, 7)]), 9, Some(7)),
            // Rolled back to before the start of this epoch: the server does not have it.
            (&second, &lineage(9, &[(7, 3)]), 8, Some(3)),
            (&second, &lineage(9, &[(7, 3)]), 4, Some(3)),
            (&second, &lineage(9, &[(7, 3)]), 2, Some(2)),
            (&second, &lineage(9, &[(7, 6)]), 8, Some(5)),
            // Rolled back to a server whose current epoch is the earlier one.
            (&second, &lineage(7, &[]), 8, Some(5)),
            (&first, &lineage(9, &[]), 8, None),
            (&lineage(0, &[]), &first, 0, Some(0)),
        ] {
            assert_eq!(
                before.common_offset(later, Offset(offset)),
                expected.map(Offset),
                "{before:?} {later:?} {offset}"
            );
        }
    }

    #[test]
    fn an_entry_of_an_unknown_epoch_shows_that_a_lineage_is_outdated() {
        let lineage = Lineage::with_earlier(Epoch(8), vec![(Epoch(7), Offset(5))]);
        for (epoch, offset, expected) in [(7, 5, true), (8, 6, true), (9, 6, false), (9, 5, false), (8, 5, false)] {
            assert_eq!(lineage.contains(Epoch(epoch), Offset(offset)), expected, "{epoch} {offset}");
        }
        let earlier = (1..=40).map(|epoch| (Epoch(epoch), Offset(100 + u64::from(epoch))));
        let forgetful = Lineage::with_earlier(Epoch(99), earlier.collect());
        assert!(forgetful.contains(Epoch(1000), Offset(50)) && !forgetful.contains(Epoch(1000), Offset(141)));
    }
}

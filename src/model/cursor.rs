//! Where a reader stands: offsets, epochs, and the cursor that a client keeps.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{NameError, StreamName};

/// Our own dense number of a log entry. The first entry is 1; [`Offset::START`] lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Offset(pub u64);

impl Offset {
    /// Before the first entry: reading after it reads everything.
    pub const START: Self = Self(0);

    /// The offset of the entry that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The offset before this one; [`Offset::START`] has none and stays.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The life of a log. One that was wiped or rolled back gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

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
    #[error("stream name in cursor")]
    Name(#[from] NameError),
}

/// Longest digit runs that fit the numbers, so that a crafted cursor is refused instead of wrapped.
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

/// How far a reader got, per stream: the last entry done. One stream may be written without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// `4f2a-17`: the one stream that is being read.
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
            marks.insert(name.parse()?, mark.parse()?);
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

/// At which offset each epoch of a log began, oldest first (Kafka's leader-epoch rule: a cursor of an older epoch
/// is good up to where the next one began, and never beyond).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    current: Epoch,
    earlier: Vec<(Epoch, Offset)>,
}

/// What a mark is worth in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Reading may go on after this offset.
    After(Offset),
    /// It lies beyond the last entry of its epoch: never silently "latest".
    Beyond,
    /// Its epoch is not of this log.
    Foreign,
}

impl Lineage {
    /// A log with one life so far.
    pub fn new(current: Epoch) -> Self {
        Self { current, earlier: Vec::new() }
    }

    /// A log whose earlier epochs ended with these offsets, oldest first.
    pub fn with_earlier(current: Epoch, earlier: Vec<(Epoch, Offset)>) -> Self {
        Self { current, earlier }
    }

    /// The epochs that ended, each with its last offset, oldest first.
    pub fn earlier(&self) -> &[(Epoch, Offset)] {
        &self.earlier
    }

    /// The epoch that the entry at `offset` belongs to, and its last offset, if it has ended.
    pub fn epoch_of(&self, offset: Offset) -> (Epoch, Option<Offset>) {
        let ended = self.earlier.iter().find(|(_, end)| offset <= *end);
        ended.map_or((self.current, None), |(epoch, end)| (*epoch, Some(*end)))
    }

    /// The epoch that new entries belong to.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// What `mark` is worth when the last entry of the log is `last`.
    pub fn standing(&self, mark: Mark, last: Offset) -> Standing {
        let end = if mark.epoch == self.current {
            last
        } else {
            match self.earlier.iter().find(|(epoch, _)| *epoch == mark.epoch) {
                Some((_, end)) => *end,
                None => return Standing::Foreign,
            }
        };
        if mark.offset <= end { Standing::After(mark.offset) } else { Standing::Beyond }
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
    fn a_crafted_cursor_is_refused() {
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
    fn a_mark_is_good_up_to_the_end_of_its_epoch_only() {
        let lineage = Lineage::new(Epoch(7));
        let at = |epoch, offset| Mark { epoch: Epoch(epoch), offset: Offset(offset) };
        assert_eq!(lineage.standing(at(7, 5), Offset(9)), Standing::After(Offset(5)));
        assert_eq!(lineage.standing(at(7, 10), Offset(9)), Standing::Beyond);
        assert_eq!(lineage.standing(at(8, 1), Offset(9)), Standing::Foreign);
    }

    #[test]
    fn an_epoch_that_ended_keeps_its_entries_and_its_cursors() {
        let earlier = vec![(Epoch(7), Offset(5)), (Epoch(8), Offset(5)), (Epoch(9), Offset(8))];
        let lineage = Lineage::with_earlier(Epoch(10), earlier);
        let epochs = [1, 5, 6, 8, 9].map(|offset| lineage.epoch_of(Offset(offset)).0.0);
        assert_eq!(epochs, [7, 7, 9, 9, 10]);
        assert_eq!(lineage.epoch_of(Offset(6)), (Epoch(9), Some(Offset(8))));
        assert_eq!(lineage.epoch_of(Offset(9)), (Epoch(10), None));
        let at = |epoch, offset| Mark { epoch: Epoch(epoch), offset: Offset(offset) };
        assert_eq!(lineage.standing(at(7, 5), Offset(9)), Standing::After(Offset(5)));
        assert_eq!(lineage.standing(at(7, 6), Offset(9)), Standing::Beyond);
        assert_eq!(lineage.standing(at(10, 9), Offset(9)), Standing::After(Offset(9)));
    }
}

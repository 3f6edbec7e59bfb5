//! The listings that resolve `*` to ids: their targets, pages and entries.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use crate::connector::{
    Method, PreparationStep, RestRequest,
    json::{self, Members},
};

/// The requested page of a listing.
#[derive(Debug, Clone)]
pub(super) struct ListingPage {
    number: u32,
    target: String,
    /// The targets of earlier pages, at most [`PAGES_MAX`]. A listing that returns to one of them is a loop.
    before: BTreeSet<String>,
    /// The number of entries without a readable id.
    pub(super) unread: usize,
}

/// The kinds of ids that `*` can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Queues,
    Users,
}

const PAGE_LEN: usize = 100;
/// The limit of pages. It exceeds the room of a channel by far.
pub(super) const PAGES_MAX: u32 = 100;
/// The limit of ids of one family. It exceeds the room of a channel by far.
pub(super) const IDS_MAX: usize = 10_000;
/// A longer `nextUri` is not followed.
const TARGET_LEN_MAX: usize = 2_048;

/// The families whose ids `*` stands for.
pub const EXPANDED: [&str; 2] = ["queues", "users"];

/// Whether the ids that `*` stands for in a topic can be looked up.
pub fn expands(topic: &str) -> bool {
    Family::of(topic).is_some()
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Queues, Self::Users];

    pub(super) fn of(topic: &str) -> Option<Self> {
        let segments: Vec<&str> = topic.split('.').collect();
        let star = segments.iter().position(|segment| *segment == "*" || segment.starts_with("*?"))?;
        match segments.get(star.checked_sub(1)?).copied() {
            Some("queues") => Some(Self::Queues),
            Some("users") => Some(Self::Users),
            _ => None,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Queues => "/api/v2/routing/queues",
            Self::Users => "/api/v2/users",
        }
    }

    fn target(self, page: u32) -> String {
        format!("{}?pageSize={PAGE_LEN}&pageNumber={page}", self.path())
    }

    /// The name of its listing in errors.
    pub(super) fn call(self) -> String {
        format!("GET {}", self.path())
    }
}

impl ListingPage {
    pub(super) fn first(family: Family) -> Self {
        Self { number: 1, target: family.target(1), before: BTreeSet::new(), unread: 0 }
    }

    pub(super) fn call(&self) -> PreparationStep {
        PreparationStep::Call(RestRequest { method: Method::Get, target: self.target.clone(), body: None })
    }

    /// The next page, none after the last one, or why the listing is cut off.
    pub(super) fn next(&self, family: Family, listed: &Members, len: usize) -> Result<Option<Self>, String> {
        let number = self.number + 1;
        let pages = listed.number("pageCount");
        let target = match listed.text("nextUri").filter(|uri| !uri.is_empty()) {
            Some(uri) => next_target(family, &uri)?,
            None if pages.is_some_and(|pages| u64::from(self.number) >= pages) => return Ok(None),
            None if pages.is_none() && len < PAGE_LEN => return Ok(None),
            None => family.target(number),
        };
        if number > PAGES_MAX {
            return Err(format!("cut off after {PAGES_MAX} pages"));
        }
        let mut before = self.before.clone();
        before.insert(self.target.clone());
        if before.contains(&target) {
            return Err("nextUri leads back to a page that was read".to_owned());
        }
        Ok(Some(Self { number, target, before, unread: self.unread }))
    }
}

/// The target of `nextUri`: a path, a query alone, or an absolute URL. The shell checks whether the host of an absolute
/// URL may receive the token.
fn next_target(family: Family, uri: &str) -> Result<String, String> {
    let unreadable = || format!("nextUri {:?} is no path and no URL", json::truncated(uri));
    if uri.len() > TARGET_LEN_MAX || uri.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(unreadable());
    }
    let lower = uri.get(..8).unwrap_or(uri).to_ascii_lowercase();
    if uri.starts_with('?') {
        return Ok(format!("{}{uri}", family.path()));
    }
    let is_path = uri.starts_with('/') && !uri.starts_with("//");
    let is_url = lower.starts_with("http://") || lower.starts_with("https://");
    if is_path || is_url { Ok(uri.to_owned()) } else { Err(unreadable()) }
}

/// The id of an entry of a listing: a text or a number.
pub(super) fn id_of_entity(entity: &RawValue) -> Option<String> {
    let id = Members::read(entity.get().as_bytes())?.text("id")?;
    (!id.is_empty() && id.len() <= json::TEXT_LEN_MAX && !id.contains(['.', '*', '?'])).then_some(id)
}

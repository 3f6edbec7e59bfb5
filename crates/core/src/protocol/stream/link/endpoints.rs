//! The endpoints that a stream holds at the platform, and which one the next session uses.

use crate::protocol::{
    Moment,
    session::{ProvisionedEndpoint, Session},
};

/// The endpoints of one stream.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// The endpoint of the newest live session, or of the last one.
    pub(super) current: Option<ProvisionedEndpoint>,
    /// An endpoint that a failed successor made. The next attempt takes it.
    pub(super) spare: Option<ProvisionedEndpoint>,
    /// The endpoint of the session that was closed last, while notices come one after the other.
    pub(super) previous: Option<ProvisionedEndpoint>,
    /// The topics of the newest live session.
    pub(super) subscribed: Vec<String>,
    /// The platform refused some of the configured topics.
    pub(super) degraded: bool,
}

impl Endpoints {
    /// Takes the endpoint for the only session.
    pub(super) fn take_usable(&mut self, generation: u64, now: Moment) -> Option<ProvisionedEndpoint> {
        let current = self.current.take_if(|provisioned| is_usable(provisioned, generation, now));
        current.or_else(|| self.take_spare(generation, now))
    }

    pub(super) fn take_spare(&mut self, generation: u64, now: Moment) -> Option<ProvisionedEndpoint> {
        self.spare.take_if(|provisioned| is_usable(provisioned, generation, now))
    }

    /// Takes the endpoint of the session before `old`, if it has the same topics: a platform limits the endpoints of a
    /// client, so that two endpoints take turns while notices come one after the other.
    pub(super) fn take_previous(&mut self, old: &Session, generation: u64, now: Moment) -> Option<ProvisionedEndpoint> {
        let previous = self.previous.take()?;
        let is_same = old.provisioned().is_some_and(|used| used.endpoint.topics == previous.endpoint.topics);
        (is_same && is_usable(&previous, generation, now)).then_some(previous)
    }
}

/// Whether an endpoint can be used under a token.
fn is_usable(provisioned: &ProvisionedEndpoint, generation: u64, now: Moment) -> bool {
    provisioned.generation == generation && provisioned.expires_at.is_none_or(|expires_at| now.at < expires_at)
}

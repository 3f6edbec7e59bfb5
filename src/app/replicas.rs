//! Joins the replicas on the same Redis: leases of streams, and shared tokens.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;

use super::HANDOVER_MAX;
use crate::{
    auth,
    config::{self, Config},
    coordination::{LeaseHandle, Registry, Replica, SharedSettings},
    model::{ReplicaId, StreamName},
    protocol::lease,
    random,
    store::{Store, redis::connection::RedisTimeouts},
    tasks::Tasks,
    telemetry::metrics,
};

/// Interval of an owner's heartbeats to its standby.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// An owner without a heartbeat for this time is considered dead.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(400);
/// Maximum delay after the start before a replica takes streams, as a share of the lease: replicas that start together
/// see each other first.
const LEASE_JITTER_SHARE: f64 = 0.5;
/// Timeout of a lease request, as a share of the lease.
const ANSWER_TIMEOUT_SHARE: f64 = 0.25;
/// Timeout of a connection for lease requests, as a share of the lease.
const CONNECT_TIMEOUT_SHARE: f64 = 0.5;
/// Timeouts for shared tokens. After them a replica continues without the other replicas.
const VAULT_LIMITS: RedisTimeouts =
    RedisTimeouts { connect: Duration::from_millis(750), response: Duration::from_millis(750) };

/// Settings to share tokens with the replicas on the same Redis, over a connection without appends.
pub(super) async fn sharing(config: &Config, store: &Store) -> anyhow::Result<Option<auth::TokenSharingSettings>> {
    let (config::StoreBackend::Redis(from), Store::Redis(store)) = (&config.store.kind, store) else { return Ok(None) };
    let seal = auth::read_seal(from.seal_key.as_ref()).await.context("store.seal_key")?;
    let connection = store.connection().dedicated_within(VAULT_LIMITS);
    Ok(Some(auth::TokenSharingSettings { connection, prefix: from.prefix.clone(), seal: Arc::new(seal) }))
}

/// Joins the replicas on the same Redis, so that each stream has one owner.
pub(super) fn join(
    config: &Config,
    store: &Store,
    tasks: &mut Tasks,
) -> (Option<Replica>, BTreeMap<StreamName, LeaseHandle>) {
    let (config::StoreBackend::Redis(from), Store::Redis(store)) = (&config.store.kind, store) else {
        metrics::replica_members(1);
        return (None, BTreeMap::new());
    };
    let me = ReplicaId(random::u64());
    let standby = config.streams.iter().filter(|(_, stream)| stream.keys.standby).map(|(name, _)| name.clone());
    let settings = lease::Settings {
        me,
        streams: config.streams.keys().cloned().collect(),
        limit: from.streams_max,
        standby: standby.collect(),
        lease_ttl: from.lease,
        heartbeat_interval: HEARTBEAT_INTERVAL,
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        handover_timeout: HANDOVER_MAX,
        start_delay: from.lease.mul_f64(LEASE_JITTER_SHARE * fastrand::f64()),
    };
    // A separate connection: lease requests do not wait for appends.
    let limits = RedisTimeouts {
        connect: from.lease.mul_f64(CONNECT_TIMEOUT_SHARE),
        response: from.lease.mul_f64(ANSWER_TIMEOUT_SHARE),
    };
    let shared_settings = SharedSettings::of(store.settings());
    let registry = Registry::new(store.connection().dedicated_within(limits), &from.prefix, me, shared_settings);
    let (replica, leases) = Replica::join(settings, registry, tasks);
    tracing::info!(replica = %me, "replica joined");
    (Some(replica), leases)
}

//! The connection limits of both listeners, and their settings from the configuration.

use crate::{
    admin,
    config::Config,
    downstream::server,
    listener::{self, descriptors},
};

/// Raises the limit of open files, and divides the descriptors among the listeners.
pub(super) fn share_descriptors(config: &Config) -> descriptors::ConnectionBudget {
    let limit = descriptors::raise();
    let wanted = descriptors::DescriptorDemand {
        consumers: config.http.connections,
        streams: config.streams.len(),
        accounts: config.accounts.len(),
    };
    let share = descriptors::budget(limit, wanted);
    let (consumers, operators) = (share.consumers, share.operators);
    if consumers < wanted.consumers {
        tracing::warn!(
            consumers,
            operators,
            configured = wanted.consumers,
            descriptors = limit,
            "fewer connections than http.connections: raise the hard limit of open files (ulimit -Hn, LimitNOFILE)"
        );
    } else {
        tracing::info!(consumers, operators, descriptors = limit, "connection limits");
    }
    share
}

pub(super) fn server_settings(config: &Config, connections: usize) -> server::Settings {
    let http = &config.http;
    let limits = listener::HttpListener {
        connections_max: connections,
        connections_per_address_max: http.connections_per_address,
        trusted_proxies: http.trusted_proxies.clone(),
        ..listener::HttpListener::default()
    };
    server::Settings {
        allowed_origins: http.allowed_origins.clone(),
        allowed_hosts: http.allowed_hosts.clone(),
        limits,
        ..server::Settings::new(http.listen.address())
    }
}

pub(super) fn admin_settings(config: &Config, connections: usize) -> admin::Settings {
    let usual = admin::Settings::new(config.admin.listen.address());
    let limits = listener::HttpListener {
        connections_max: connections,
        connections_per_address_max: connections,
        ..usual.limits
    };
    let (allowed_hosts, token) = (config.admin.allowed_hosts.clone(), config.admin.token.clone());
    admin::Settings { allowed_hosts, token, limits, ..usual }
}

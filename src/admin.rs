//! The admin listener: health, metrics, status and operator commands.
//!
//! It never waits for a platform or the store: it shows the current state of the parts.

mod operator_token;
mod responses;
mod routes;
mod sessions;
mod startup;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Semaphore;

use crate::{
    auth::Tokens,
    clock,
    coordination::Replica,
    downstream::server::access::AccessControl,
    event_log::EventLogs,
    listener::{
        HttpListener, Listener,
        descriptors::{ConnectionBudget, OPERATORS_MAX},
        origin::Origins,
        router_switch::RouterSwitch,
    },
    model::{SecretRef, StreamName},
    store::Store,
    tasks::Tasks,
    upstream::StreamRegistry,
};
use routes::{AdminState, PAGES_MAX};
pub use startup::StartupProgress;

/// Settings of the admin listener.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Allowed hosts in addition to its own addresses.
    pub allowed_hosts: Vec<String>,
    /// The token of operators. Required off loopback.
    pub token: Option<SecretRef>,
    pub limits: HttpListener,
}

impl Settings {
    /// The defaults on an address.
    pub fn new(listen: SocketAddr) -> Self {
        let limits = HttpListener {
            connections_max: OPERATORS_MAX,
            connections_per_address_max: OPERATORS_MAX,
            ..HttpListener::default()
        };
        Self { listen, allowed_hosts: Vec::new(), token: None, limits }
    }
}

/// Whether the process accepts new consumers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Marks the process as draining, and so as not ready. This is final.
    pub fn drain(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn draining(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The parts that the listener shows and sends commands to.
#[derive(Debug, Clone)]
pub struct AdminContext {
    pub store: Store,
    pub streams: StreamRegistry,
    pub accounts: Vec<Tokens>,
    /// This replica, if several share a store.
    pub replica: Option<Replica>,
    pub readiness: Readiness,
    pub logs: EventLogs,
    /// The access of consumers; none where they do not authenticate.
    pub access: Option<AccessControl>,
    /// Maximum connections of the listeners.
    pub connections: ConnectionBudget,
}

/// A bound admin listener that does not accept yet.
#[derive(Debug)]
pub struct AdminServer {
    listener: Listener,
    address: SocketAddr,
    allowed_hosts: Vec<String>,
    token: Option<SecretRef>,
}

impl AdminServer {
    /// Binds the listener, within a runtime.
    pub fn bind(settings: Settings) -> io::Result<Self> {
        let listener = Listener::bind(settings.listen, settings.limits)?;
        let address = listener.address()?;
        Ok(Self { listener, address, allowed_hosts: settings.allowed_hosts, token: settings.token })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the stop signal of the tasks. Until [`AdminServerHandle::serve`] it reports that the store is not open.
    pub fn start(
        self,
        tasks: &mut Tasks,
        progress: StartupProgress,
        streams: Vec<StreamName>,
        connections: ConnectionBudget,
    ) -> AdminServerHandle {
        let Self { listener, address, allowed_hosts, token } = self;
        let site = RouterSwitch::new(startup::router(progress, streams, connections));
        let (switch, stop) = (site.clone(), tasks.stop());
        tasks.start("admin", async move { Ok(listener.serve(switch, stop).await?) });
        AdminServerHandle { site, address, allowed_hosts, token }
    }
}

/// A running admin listener.
#[derive(Debug)]
pub struct AdminServerHandle {
    site: RouterSwitch,
    address: SocketAddr,
    allowed_hosts: Vec<String>,
    token: Option<SecretRef>,
}

impl AdminServerHandle {
    /// Serves the status and commands of these parts from now on.
    pub fn serve(self, parts: AdminContext) {
        let origins = Origins {
            allowed: Vec::new(),
            hosts: self.allowed_hosts,
            hosts_key: "admin.allowed_hosts",
            origins_key: None,
            loopback: self.address.ip().is_loopback(),
        };
        let pages = Arc::new(Semaphore::new(PAGES_MAX));
        let site = routes::router(AdminState { parts, origins, token: self.token, started: clock::now(), pages });
        self.site.replace(site);
    }
}

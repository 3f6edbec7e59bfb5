//! Resolves names with the system's resolver. Concurrent lookups of a name share one thread, so that a resolver that
//! hangs blocks at most one thread per name.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::watch;

use crate::telemetry::Cause;

/// Resolves names for every connection of the process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    /// Names with fixed addresses, which take precedence over the system.
    hosts: Arc<BTreeMap<String, Vec<IpAddr>>>,
    running: Arc<Mutex<BTreeMap<String, PendingLookup>>>,
}

type LookupResult = Result<Vec<IpAddr>, Cause>;
type PendingLookup = watch::Receiver<Option<LookupResult>>;

impl Resolver {
    /// A resolver with fixed addresses for these names.
    pub fn with_hosts(hosts: impl IntoIterator<Item = (String, Vec<IpAddr>)>) -> Self {
        Self { hosts: Arc::new(hosts.into_iter().collect()), ..Self::default() }
    }

    /// The addresses of a host in the resolver's order. The caller sets a deadline.
    pub(super) async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.addresses(host).await?;
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if let Some(addresses) = self.hosts.get(host) {
            return Ok(addresses.clone());
        }
        let mut running = self.join_or_start(host);
        let found = running.wait_for(Option::is_some).await;
        let found = found.map_err(|_| io::Error::other("the lookup was abandoned"))?.clone();
        found.unwrap_or_else(|| Err(Cause::new("no answer"))).map_err(io::Error::other)
    }

    /// Joins the running lookup of this name or starts one.
    fn join_or_start(&self, host: &str) -> PendingLookup {
        let mut running = self.running.lock();
        if let Some(under_way) = running.get(host) {
            return under_way.clone();
        }
        let (answer, receiver) = watch::channel(None);
        running.insert(host.to_owned(), receiver.clone());
        let (all, host) = (Arc::clone(&self.running), host.to_owned());
        // The system call cannot be cancelled. A later caller joins it.
        tokio::task::spawn_blocking(move || {
            let found = system_lookup(&host);
            all.lock().remove(&host);
            answer.send_replace(Some(found));
        });
        receiver
    }
}

fn system_lookup(host: &str) -> LookupResult {
    let found = (host, 0).to_socket_addrs().map_err(Cause::new)?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            // The HTTP client replaces the port by that of the URL.
            let found = resolver.lookup(name.as_str(), 0).await?;
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_and_a_known_name_need_no_system() {
        let known = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])];
        let resolver = Resolver::with_hosts([("two.test".to_owned(), known)]);
        for (host, expected) in
            [("two.test", "127.0.0.1:7, 127.0.0.2:7"), ("::1", "[::1]:7"), ("10.0.0.1", "10.0.0.1:7")]
        {
            let found = resolver.lookup(host, 7).await.unwrap();
            assert_eq!(super::super::race::display_list(&found), expected);
        }
    }

    #[tokio::test]
    async fn a_name_that_is_being_looked_up_is_not_looked_up_again() {
        let resolver = Resolver::default();
        let (answer, receiver) = watch::channel(None);
        resolver.running.lock().insert("slow.test".to_owned(), receiver);
        let both = async { tokio::join!(resolver.lookup("slow.test", 1), resolver.lookup("slow.test", 2)) };
        let answering = async { answer.send_replace(Some(Ok(vec![IpAddr::from([10, 0, 0, 1])]))) };
        let ((one, two), _) = tokio::join!(both, answering);
        assert_eq!((one.unwrap()[0].port(), two.unwrap()[0].port()), (1, 2));
    }

    #[tokio::test]
    async fn a_look_up_that_is_done_is_forgotten() {
        let resolver = Resolver::default();
        resolver.lookup("localhost", 1).await.unwrap();
        assert!(resolver.running.lock().is_empty());
    }
}

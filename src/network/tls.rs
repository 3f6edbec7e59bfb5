//! Trusted roots: the system's certificates, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`. They are read once.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

/// The trusted roots for the certificates of platforms and proxies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustedRoots(Arc<ClientConfig>);

impl TrustedRoots {
    /// Reads the certificates of this machine. Logs unreadable ones; without any, every TLS handshake fails.
    pub fn of_machine() -> Result<Self, rustls::Error> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "cannot read trusted certificates");
        }
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            tracing::warn!(
                ignored,
                "no trusted certificates found: wss:// and https:// cannot be used; install ca-certificates or set SSL_CERT_FILE"
            );
        }
        Self::of(roots)
    }

    /// Trusts only these certificates.
    pub fn of(roots: RootCertStore) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Self(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
    }

    pub(super) fn for_sockets(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }

    pub(super) fn for_http(&self) -> ClientConfig {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

//! TLS to a platform and a token endpoint: a configured private authority is trusted, a bad certificate never.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    RelayProcess, Site,
    child::{WAIT_MAX, eventually},
};

/// Creates two authorities, valid certificates for this machine and `platform.test`, and three invalid ones.
const MAKE: &str = r#"
set -e
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
authority() { openssl req -x509 $key -keyout $1.key -out $1.pem -days 2 -subj /CN=$1; }
leaf() {
  openssl req $key -keyout $1.key -out $1.csr -subj /CN=$1
  printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$4" > $1.ext
  openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -out $1.pem -days $3 -extfile $1.ext
}
authority known
authority unknown
leaf good known 2 DNS:localhost
leaf named known 2 DNS:platform.test
leaf expired known 0 DNS:localhost
leaf wrong-name known 2 DNS:other.test
leaf untrusted unknown 2 DNS:localhost
while openssl x509 -checkend 0 -noout -in expired.pem; do sleep 0.1; done
# Its last second is over when the next one has begun.
sleep 1.1
"#;

/// The invalid certificates, with the expected part of the error.
const BAD: [(&str, &str); 3] =
    [("expired", "expired"), ("wrong-name", "not valid for name"), ("untrusted", "UnknownIssuer")];

/// A TLS terminator in front of a platform.
pub(super) struct TlsTerminator {
    address: SocketAddr,
    attempts: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl TlsTerminator {
    pub(super) async fn start(folder: &Path, certificate: &str, platform: SocketAddr) -> Self {
        let file = |kind: &str| folder.join(format!("{certificate}.{kind}"));
        let chain = vec![CertificateDer::from_pem_file(file("pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let attempts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&attempts);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let mut server = TcpStream::connect(platform).await.unwrap();
                    drop(copy_bidirectional(&mut client, &mut server).await);
                });
            }
        });
        Self { address, attempts, _tasks: tasks }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }
}

pub(super) fn make_certificates(folder: &Path) {
    let made = Command::new("sh").args(["-c", MAKE]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "sudo apt-get install -y openssl: {}", String::from_utf8_lossy(&made.stderr));
}

/// An account with separate ports for the token endpoint and the REST API.
fn account(site: &Site, name: &str, token_port: u16, api_port: u16) -> String {
    let folder = site.folder.path().display();
    format!(
        "[accounts.{name}]\nplatform = \"genesys-cloud\"\ntoken_url = \"https://localhost:{token_port}/oauth/token\"\n\
         api_url = \"https://localhost:{api_port}\"\n\
         client_id = {{ file = \"{folder}/client-id\" }}\nclient_secret = {{ file = \"{folder}/client-secret\" }}\n\
         refresh_jitter = \"0s\"\n"
    )
}

/// A stream that starts with its socket.
fn numbered(name: &str, account: &str, port: u16) -> String {
    format!(
        "[streams.{name}]\naccount = \"{account}\"\nconnector = \"genesys-sequenced\"\n\
         url = \"wss://localhost:{port}/api/v2/analytics/conversations/summary/stream\"\n\
         backoff = {{ first = \"100ms\", cap = \"1s\" }}\n"
    )
}

/// A stream that starts with a REST call.
fn topics(name: &str, account: &str) -> String {
    format!(
        "[streams.{name}]\naccount = \"{account}\"\nconnector = \"genesys-notifications\"\n\
         topics = [\"v2.users.*.presence\"]\nbackoff = {{ first = \"100ms\", cap = \"1s\" }}\n"
    )
}

/// The status of one account or stream.
async fn shown(relay: &RelayProcess, list: &str, key: &str, name: &str) -> Value {
    let status = relay.status().await;
    status[list].as_array().unwrap().iter().find(|one| one[key] == name).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_and_a_bad_certificate_is_reported_and_retried() {
    trunkline::app::install_crypto();
    let site = Site::start().await;
    let folder = site.folder.path().to_owned();
    make_certificates(&folder);
    let platform = site.platform.address();
    let good = TlsTerminator::start(&folder, "good", platform).await;
    let mut text = std::fs::read_to_string(&site.config).unwrap();
    text.truncate(text.find("[accounts.").unwrap());
    text.push_str(&account(&site, "good", good.port(), good.port()));
    text.push_str(&numbered("good", "good", good.port()));
    let mut bad = Vec::new();
    for (certificate, words) in BAD {
        let terminator = TlsTerminator::start(&folder, certificate, platform).await;
        let calls = format!("{certificate}-calls");
        text.push_str(&account(&site, certificate, terminator.port(), good.port()));
        text.push_str(&numbered(certificate, "good", terminator.port()));
        text.push_str(&account(&site, &calls, good.port(), terminator.port()));
        text.push_str(&topics(&calls, &calls));
        bad.push((certificate, calls, words, terminator));
    }
    std::fs::write(&site.config, text).unwrap();
    let authority = folder.join("known.pem").display().to_string();
    let relay = RelayProcess::start_with(&site, &[("SSL_CERT_FILE", &authority)]).await;
    eventually("the valid certificates work", WAIT_MAX, async || {
        (shown(&relay, "streams", "stream", "good").await["state"] == "live").then_some(())
    })
    .await;
    assert_eq!(shown(&relay, "accounts", "account", "good").await["state"], "valid");
    for (certificate, calls, words, terminator) in &bad {
        // A token, a socket and a REST call.
        for (list, key, name) in
            [("accounts", "account", *certificate), ("streams", "stream", *certificate), ("streams", "stream", calls)]
        {
            eventually(&format!("the error of {key} {name} gives {words}"), WAIT_MAX, async || {
                let one = shown(&relay, list, key, name).await;
                assert!(one["state"] != "live" && one["state"] != "valid", "{one}");
                one["last_error"]
                    .as_str()
                    .filter(|error| error.contains("certificate") && error.contains(words))
                    .map(drop)
            })
            .await;
        }
        eventually("it is tried again", WAIT_MAX, async || (terminator.attempts() > 4).then_some(())).await;
    }
    let good_ones = 1 + BAD.len() as u64;
    assert_eq!(site.platform.counters().grants_total(), good_ones, "no secret is sent to an invalid certificate");
    assert_eq!(site.platform.counters().channels_created, 0, "no token is sent to an invalid certificate");
}

//! Connections over real sockets: peers that hang at each step, names with two addresses, and proxies.

use std::net::IpAddr;

use rustls::RootCertStore;
use tokio::{io::AsyncReadExt, net::TcpListener, sync::mpsc};

use super::*;
use crate::telemetry::chain;

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A deadline that is reached in these tests.
const SHORT: Duration = Duration::from_millis(400);

fn network(proxies: Proxies, hosts: &[(&str, &[[u8; 4]])]) -> NetworkPolicy {
    let hosts = hosts
        .iter()
        .map(|(name, addresses)| ((*name).to_owned(), addresses.iter().copied().map(IpAddr::from).collect::<Vec<_>>()));
    let settings = Settings { proxies, insecure: true };
    NetworkPolicy::new(settings, TrustedRoots::of(RootCertStore::empty()).unwrap(), Resolver::with_hosts(hosts))
}

fn url(text: impl AsRef<str>) -> Url {
    Url::parse(text.as_ref()).unwrap()
}

fn soon() -> Instant {
    clock::now() + SHORT
}

fn later() -> Instant {
    clock::now() + TIMEOUT
}

/// Sends these bytes to each connection, one at a time, and reports when the peer closes it.
async fn slow_peer(says: &'static [u8], between: Duration) -> (u16, mpsc::Receiver<()>, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (closed, closings) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let saying = async {
                for byte in says {
                    if write.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(between).await;
                }
                std::future::pending::<()>().await;
            };
            let mut bytes = [0; 1024];
            let hearing = async { while read.read(&mut bytes).await.is_ok_and(|len| len > 0) {} };
            tokio::select! {
                () = saying => (),
                () = hearing => closed.send(()).await.unwrap(),
            }
        }
    });
    (port, closings, tasks)
}

#[tokio::test]
async fn a_connection_to_a_silent_peer_is_closed_at_the_deadline() {
    let proxied = |port: u16| Proxies::all(&Proxy::parse(&format!("http://127.0.0.1:{port}")).unwrap(), &[]);
    // No answer to a TLS handshake; single bytes of an answer to it; no answer to CONNECT; single bytes of an answer to
    // it.
    for (says, through_proxy, step) in [
        (&b""[..], false, "TLS handshake with 127.0.0.1"),
        (b"\x16\x03\x03\x40\x00\x02\x00\x00\x40\x03\x03\x03\x03\x03\x03", false, "TLS handshake with 127.0.0.1"),
        (b"", true, "CONNECT to a.test:443 through the proxy http://127.0.0.1"),
        (b"HTTP/1.1 200 OK\r\nx: yyyyyyy", true, "CONNECT to a.test:443 through the proxy http://127.0.0.1"),
    ] {
        let (port, mut closings, _tasks) = slow_peer(says, Duration::from_millis(50)).await;
        let (network, to) = match through_proxy {
            true => (network(proxied(port), &[]), url("wss://a.test")),
            false => (network(Proxies::none(), &[]), url(format!("wss://127.0.0.1:{port}"))),
        };
        let error = chain(&network.connect(&to, soon()).await.unwrap_err());
        assert!(error.starts_with(step) && error.contains(": not done within "), "{error}");
        tokio::time::timeout(TIMEOUT, closings.recv()).await.unwrap().unwrap();
        // A caller that drops the future has the same effect as the deadline.
        drop(tokio::time::timeout(Duration::from_millis(100), network.connect(&to, later())).await);
        tokio::time::timeout(TIMEOUT, closings.recv()).await.unwrap().unwrap();
    }
}

/// A listener whose backlog is full: further connections get no answer.
async fn swallowing() -> (u16, Vec<TcpStream>, TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        held.push(stream);
        assert!(held.len() < 64, "the backlog has no end");
    }
    (address.port(), held, listener)
}

#[tokio::test]
async fn a_black_holed_first_address_falls_back_to_the_second() {
    let (port, _held, _listener) = swallowing().await;
    let good = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let network = network(Proxies::none(), &[("two.test", &[[127, 0, 0, 1], [127, 0, 0, 2]])]);
    let to = url(format!("ws://two.test:{port}"));
    let (connected, accepted) = tokio::join!(network.connect(&to, later()), good.accept());
    assert!(connected.is_ok() && accepted.is_ok());
    // The HTTP client gives each address its share of the time.
    let limits = HttpLimits { connect: 2 * SHORT, total: TIMEOUT };
    let client = network.http_client(limits).build().unwrap();
    let answering = async {
        let (mut stream, _) = good.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        stream
    };
    let (answer, _stream) = tokio::join!(client.get(format!("http://two.test:{port}/")).send(), answering);
    assert_eq!(answer.unwrap().status(), 204);
    drop(good);
    let lost = network.connect(&to, soon()).await.unwrap_err().to_string();
    assert!(lost.contains(&format!("127.0.0.1:{port}, 127.0.0.2:{port}")), "{lost}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_named() {
    let network = network(Proxies::none(), &[("empty.test", &[])]);
    let error = chain(&network.connect(&url("ws://empty.test"), later()).await.unwrap_err());
    assert!(error.contains("no address"), "{error}");
    let error = chain(&network.connect(&url("wss://no-such-name.invalid"), later()).await.unwrap_err());
    assert!(error.starts_with("name resolution of no-such-name.invalid: "), "{error}");
}

#[tokio::test]
async fn credentials_do_not_leave_this_machine_in_plain_text() {
    let trust = TrustedRoots::of(RootCertStore::empty()).unwrap();
    let network = NetworkPolicy::new(Settings::default(), trust, Resolver::default());
    for refused in ["ws://10.0.0.1/channel", "http://a.test"] {
        let error = chain(&network.connect(&url(refused), later()).await.unwrap_err());
        assert!(error.contains("plain text") && error.contains("insecure = true"), "{error}");
    }
    for fine in ["ws://127.0.0.1:1", "ws://localhost", "wss://a.test", "https://10.0.0.1"] {
        assert_eq!(network.check_encryption(&url(fine)), Ok(()));
    }
}

/// A proxy that sends this answer to each request after it has read the request. The receiver gets the requests.
async fn proxy(answer: &'static str) -> (Proxy, mpsc::Receiver<String>, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::channel(16);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                request.push(byte[0]);
            }
            asked.send(String::from_utf8(request).unwrap()).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Waits until the client has read it.
            drop(stream.read(&mut [0; 1024]).await);
        }
    });
    (Proxy::parse(&format!("http://user:pa%20ss@127.0.0.1:{port}")).unwrap(), requests, tasks)
}

#[tokio::test]
async fn sockets_and_the_http_client_ask_the_proxy_for_a_tunnel_and_name_it_when_it_refuses() {
    const LOGIN: &str = "Basic dXNlcjpwYSBzcw==";
    let (proxy, mut requests, _tasks) =
        proxy("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
    let network = network(Proxies::all(&proxy, &["direct.test".to_owned()]), &[]);
    let error = chain(&network.connect(&url("wss://a.test/x"), later()).await.unwrap_err());
    assert_eq!(error, format!("CONNECT to a.test:443 through the proxy {proxy}: the proxy answered 407"));
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"), "{request}");
    assert!(request.contains(&format!("Proxy-Authorization: {LOGIN}\r\n")), "{request}");

    let client = network.http_client(HttpLimits { connect: TIMEOUT, total: TIMEOUT }).build().unwrap();
    client.get("https://a.test:8443/y").bearer_auth("t0ken").send().await.unwrap_err();
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("CONNECT a.test:8443 HTTP/1.1\r\n") && request.contains(LOGIN), "{request}");
    assert!(!request.contains("t0ken"), "{request}");
    assert_eq!(network.proxy_name("https://direct.test/"), None);
    assert_eq!(network.proxy_name("wss://a.test/"), Some(proxy.to_string()));
}

#[tokio::test]
async fn every_2xx_to_connect_opens_a_tunnel_and_later_bytes_belong_to_it() {
    for answer in [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 Connection established\nProxy-agent: a\n\n",
        "HTTP/1.1 200\r\n\r\n",
        "HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nearly",
    ] {
        let (proxy, mut requests, _tasks) = proxy(answer).await;
        let network = network(Proxies::all(&proxy, &[]), &[]);
        let mut tunnel = network.connect(&url("ws://a.test:81"), later()).await.unwrap();
        assert!(requests.recv().await.unwrap().starts_with("CONNECT a.test:81 "));
        tunnel.write_all(b"x").await.unwrap();
        let mut read = String::new();
        tunnel.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, if answer.ends_with("early") { "early" } else { "" }, "{answer}");
    }
}

//! The keys of an issuer, over real loopback sockets.

use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::Url;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::{downstream::server::access::jwks::JwksTask, network::HttpLimits, protocol::key_refresh::KeyRefresh};

/// The interval of fetches in these tests.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the issuer answers.
#[derive(Debug, Clone)]
enum Answer {
    Send(String),
    /// Nothing.
    Hang,
    /// Closes the connection.
    Close,
}

/// An issuer with its address and its answer.
struct Issuer {
    url: String,
    state: Arc<Mutex<IssuerState>>,
    tasks: Tasks,
}

#[derive(Debug)]
struct IssuerState {
    answer: Answer,
    requests: usize,
}

impl Issuer {
    async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(IssuerState { answer, requests: 0 }));
        let mut tasks = Tasks::new("issuer");
        let (stop, served) = (tasks.stop(), Arc::clone(&state));
        tasks.start("accept", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => (),
                () = serve(listener, served) => (),
            }
            Ok(())
        });
        Self { url, state, tasks }
    }

    fn answers(&self, answer: Answer) {
        self.state.lock().answer = answer;
    }

    fn requests(&self) -> usize {
        self.state.lock().requests
    }

    /// A verifier with the keys of this issuer.
    fn verifier(&mut self) -> Verifier {
        let limits = HttpLimits { connect: Duration::from_millis(200), total: Duration::from_millis(400) };
        let url = Url::parse(&self.url).unwrap();
        let task = JwksTask::new(url, &network(), limits, KeyRefresh::new(INTERVAL)).unwrap();
        let (verifier, owner) = Verifier::new(ClaimRules::default(), KeySet::Unavailable);
        let stop = self.tasks.stop();
        self.tasks.start("keys", task.run(owner, stop));
        verifier
    }

    async fn stop(self) {
        self.tasks.drain(Duration::from_secs(1)).await.unwrap();
    }
}

/// Serves one connection at a time: a verifier never has two requests in flight.
async fn serve(listener: TcpListener, state: Arc<Mutex<IssuerState>>) {
    let mut hanging = Vec::new();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await;
        let answer = {
            let mut state = state.lock();
            state.requests += 1;
            state.answer.clone()
        };
        match answer {
            Answer::Send(text) => drop(socket.write_all(text.as_bytes()).await),
            Answer::Hang => hanging.push(socket),
            Answer::Close => (),
        }
    }
}

async fn read_request(socket: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        match socket.read(&mut part).await {
            Ok(len @ 1..) => text.extend_from_slice(&part[..len]),
            Ok(0) | Err(_) => return,
        }
    }
}

fn response(status: u16, headers: &str, body: &str) -> Answer {
    Answer::Send(format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()))
}

fn keys(keys: &[Value]) -> Answer {
    response(200, "Cache-Control: public, max-age=3600\r\n", &json!({ "keys": keys }).to_string())
}

fn token(key: &TestKey, id: &str) -> String {
    key.token(&json!({ "alg": key.algorithm, "kid": id }), &claims(clock::wall()))
}

/// Log lines of this thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub(super) fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl std::io::Write for Logs {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn the_first_token_after_a_rotation_is_valid() {
    let mut issuer = Issuer::start(keys(&[ED.jwk("a"), P256.jwk("b")])).await;
    let verifier = issuer.verifier();
    assert!(verifier.verify_or_wait(&token(&ED, "a")).await.is_ok(), "waits for the first keys");
    assert!(verifier.verify_or_wait(&token(&P256, "b")).await.is_ok());
    assert_eq!(issuer.requests(), 1);

    issuer.answers(keys(&[OTHER_ED.jwk("c")]));
    assert!(verifier.verify_or_wait(&token(&OTHER_ED, "c")).await.is_ok());
    assert_eq!(verifier.verify(&token(&ED, "a"), clock::wall()), Err(TokenError::UnknownKey), "the old key is gone");
    issuer.stop().await;
}

#[tokio::test]
async fn tokens_with_unknown_keys_cause_few_requests() {
    let mut issuer = Issuer::start(keys(&[ED.jwk("a")])).await;
    let verifier = issuer.verifier();
    verifier.verify_or_wait(&token(&ED, "a")).await.unwrap();
    let (start, before) = (clock::now(), issuer.requests());
    let mut tokens = 0;
    while clock::now() < start + 10 * INTERVAL {
        for id in 0..50 {
            let unknown = token(&ED, &format!("{tokens}-{id}"));
            assert_eq!(verifier.verify(&unknown, clock::wall()), Err(TokenError::UnknownKey));
            tokens += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let intervals = (clock::now() - start).as_millis() / INTERVAL.as_millis();
    let requests = issuer.requests() - before;
    assert!(tokens > 500 && requests >= 2, "{tokens} tokens, {requests} requests");
    assert!(requests as u128 <= intervals + 1, "{requests} requests in {intervals} intervals");
    issuer.stop().await;
}

#[tokio::test]
async fn a_bad_answer_leaves_the_last_keys_in_use() {
    let logs = Logs::default();
    let _capturing = tracing::subscriber::set_default(logs.subscriber());
    let elsewhere = Issuer::start(keys(&[OTHER_ED.jwk("c")])).await;
    let mut issuer = Issuer::start(keys(&[ED.jwk("a")])).await;
    let verifier = issuer.verifier();
    let good = token(&ED, "a");
    verifier.verify_or_wait(&good).await.unwrap();

    let many: Vec<Value> = (0..65).map(|id| P256.jwk(&id.to_string())).collect();
    let large = response(200, "", &format!(r#"{{"keys":[{}],"x":"{}"}}"#, OTHER_ED.jwk("c"), "x".repeat(256 * 1024)));
    let location = format!("Location: {}\r\n", elsewhere.url);
    for (answer, expected) in [
        (Answer::Close, "cannot reach the issuer"),
        (Answer::Hang, "timed out"),
        (response(500, "", "canary"), "answered 500"),
        (response(302, &location, ""), "answered 302"),
        (response(307, "Location: /other\r\n", ""), "answered 307"),
        (large, "longer than 262144 bytes"),
        (keys(&many), "more than 64 keys"),
        (response(200, "", "<html>canary"), "not a JSON Web Key Set"),
        (response(200, "", r#"{"keys":[]}"#), "no key that can verify tokens"),
        (keys(&[json!({ "kty": "oct", "k": "Y2FuYXJ5", "kid": "c" })]), "no key that can verify tokens"),
    ] {
        issuer.answers(answer);
        let lines = logs.text().matches(expected).count();
        eventually(expected, || {
            drop(verifier.verify(&token(&OTHER_ED, "c"), clock::wall()));
            logs.text().matches(expected).count() > lines
        })
        .await;
        assert!(verifier.verify(&good, clock::wall()).is_ok(), "{expected}");
    }
    assert_eq!(elsewhere.requests(), 0, "a redirect is not followed");
    assert!(!logs.text().contains("canary"), "{}", logs.text());
    issuer.answers(keys(&[OTHER_ED.jwk("c"), json!({ "kty": "future" }), json!(1)]));
    eventually("the new keys are in use", || verifier.verify(&token(&OTHER_ED, "c"), clock::wall()).is_ok()).await;
    issuer.stop().await;
    elsewhere.stop().await;
}

#[tokio::test]
async fn without_any_keys_a_token_may_be_valid_later() {
    let mut issuer = Issuer::start(Answer::Hang).await;
    let verifier = issuer.verifier();
    let good = token(&ED, "a");
    let error = verifier.verify(&good, clock::wall()).unwrap_err();
    assert!(error.is_temporary() && error == TokenError::KeysUnavailable);
    issuer.answers(keys(&[ED.jwk("a")]));
    eventually("the issuer is back", || verifier.verify(&good, clock::wall()).is_ok()).await;
    issuer.stop().await;
}

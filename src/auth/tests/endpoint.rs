//! A scripted token endpoint on a loopback socket that records its requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
};

use super::TIMEOUT;
use crate::tasks::Tasks;

/// Maximum number of recorded requests. Further ones are answered only.
const REQUESTS_MAX: usize = 100;

pub(super) struct Endpoint {
    pub(super) url: String,
    requests: mpsc::Receiver<Request>,
    count: Arc<AtomicUsize>,
    tasks: Tasks,
}

#[derive(Debug, Clone)]
pub(super) enum Reply {
    Send(String),
    Bytes(Vec<u8>),
    /// Never answers.
    Hang,
    HangUp,
    /// Waits for the gate, then sends the next reply of the script.
    Gated(Arc<Notify>),
}

pub(super) struct Request {
    head: String,
    pub(super) body: String,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

impl Reply {
    pub(super) fn granted(token: &str, expires_in: u64) -> Self {
        Self::response(
            200,
            "",
            &format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":{expires_in}}}"#),
        )
    }

    /// JSON, unless a header has another type.
    pub(super) fn response(status: u16, headers: &str, body: &str) -> Self {
        let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n", body.len());
        if !headers.contains("Content-Type") {
            head.push_str("Content-Type: application/json\r\n");
        }
        if !headers.is_empty() {
            head.push_str(headers);
            head.push_str("\r\n");
        }
        Self::Send(format!("{head}\r\n{body}"))
    }

    /// A body that is shorter than its stated length.
    pub(super) fn truncated() -> Self {
        Self::Send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{".to_owned())
    }

    /// JSON as gzip (RFC 1952) in stored blocks (RFC 1951 section 3.2.4).
    pub(super) fn compressed(body: &str) -> Self {
        let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        let blocks: Vec<&[u8]> = body.as_bytes().chunks(usize::from(u16::MAX)).collect();
        for (index, block) in blocks.iter().enumerate() {
            let len = u16::try_from(block.len()).unwrap();
            packed.push(u8::from(index + 1 == blocks.len()));
            packed.extend(len.to_le_bytes());
            packed.extend((!len).to_le_bytes());
            packed.extend_from_slice(block);
        }
        packed.extend(crc32fast::hash(body.as_bytes()).to_le_bytes());
        packed.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            packed.len()
        )
        .into_bytes();
        answer.extend(packed);
        Self::Bytes(answer)
    }

    pub(super) fn gate() -> (Arc<Notify>, Self) {
        let gate = Arc::new(Notify::new());
        (Arc::clone(&gate), Self::Gated(gate))
    }
}

impl Endpoint {
    /// Answers by the script; the last reply is repeated.
    pub(super) async fn start(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/oauth/token", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let count = Arc::new(AtomicUsize::new(0));
        let mut tasks = Tasks::new("endpoint");
        let (stop, counted) = (tasks.stop(), Arc::clone(&count));
        tasks.start("accept", async move {
            let serving = serve(listener, script, sender, counted);
            tokio::select! {
                biased;
                () = stop.cancelled() => (),
                () = serving => (),
            }
            Ok(())
        });
        Self { url, requests, count, tasks }
    }

    /// The next request.
    pub(super) async fn request(&mut self) -> Request {
        tokio::time::timeout(TIMEOUT, self.requests.recv()).await.expect("no request arrived").unwrap()
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) async fn stop(self) {
        self.tasks.drain(Duration::from_secs(1)).await.unwrap();
    }
}

/// Serves one connection at a time: an account never has two requests in flight.
async fn serve(listener: TcpListener, script: Vec<Reply>, sender: mpsc::Sender<Request>, count: Arc<AtomicUsize>) {
    let mut script = script.into_iter().peekable();
    let mut last = Reply::HangUp;
    let mut hanging = Vec::new();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let Some(request) = read(&mut socket).await else { continue };
        count.fetch_add(1, Ordering::SeqCst);
        sender.try_send(request).ok();
        last = script.next().unwrap_or(last);
        if let Reply::Gated(gate) = &last {
            gate.notified().await;
            last = script.next().expect("a reply behind the gate");
        }
        match &last {
            Reply::Send(answer) => drop(socket.write_all(answer.as_bytes()).await),
            Reply::Bytes(answer) => drop(socket.write_all(answer).await),
            Reply::Hang => hanging.push(socket),
            Reply::HangUp | Reply::Gated(_) => drop(socket),
        }
    }
}

async fn read(socket: &mut TcpStream) -> Option<Request> {
    let mut text = String::new();
    loop {
        let mut part = [0; 4096];
        let len = socket.read(&mut part).await.ok().filter(|len| *len > 0)?;
        text.push_str(std::str::from_utf8(&part[..len]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let request = Request { head: head.to_owned(), body: body.to_owned() };
        let expected: usize = request.header("content-length").unwrap().parse().unwrap();
        if body.len() >= expected {
            return Some(request);
        }
    }
}

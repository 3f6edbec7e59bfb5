//! The listener with a site of two pages: one answers, one panics.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::tasks::Tasks;

struct TwoPages;

impl Site for TwoPages {
    type Session = ();

    async fn answer(&self, request: Request<Incoming>) -> Answer<()> {
        assert_ne!(request.uri().path(), "/broken", "a defect");
        Answer::Response(Response::new(whole("fine")))
    }

    async fn converse(_: (), _: Socket, _: Bytes) {}
}

fn start(limits: Limits) -> (SocketAddr, Tasks) {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), limits).unwrap();
    let address = listener.address().unwrap();
    let mut tasks = Tasks::new("listener");
    let stop = tasks.stop();
    tasks.start("two pages", async move {
        listener.serve(TwoPages, stop).await;
        Ok(())
    });
    (address, tasks)
}

async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 1_024];
    let read = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_and_no_other() {
    let (address, tasks) = start(Limits { connections_max: 2, ..Limits::default() });
    let mut other = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut other, "/").await.ends_with("fine"));
    for _ in 0..5 {
        let mut unlucky = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut unlucky, "/broken").await;
        assert!(answer.is_empty() || answer.contains("503"), "{answer}");
    }
    assert!(ask(&mut other, "/").await.ends_with("fine"));
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let (address, tasks) = start(Limits { header_timeout: Duration::from_secs(600), ..Limits::default() });
    let mut used = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut used, "/").await.ends_with("fine"));
    let mut fresh = TcpStream::connect(address).await.unwrap();
    let (drained, closed) = tokio::join!(tasks.drain(Duration::from_secs(10)), async {
        (used.read(&mut [0; 16]).await.unwrap_or(0), fresh.read(&mut [0; 16]).await.unwrap_or(0))
    });
    drained.unwrap();
    assert_eq!(closed, (0, 0));
}

//! Repeated kills under load: the relay loses and duplicates nothing, and consumers continue.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

pub(super) use self::shared::{ReceivedEntries, RelayUrl};
use super::{
    child::{WAIT_MAX, eventually},
    log::{LogEntry, assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

const KILLS: u64 = 50;
const EVENTS_A_SECOND: u64 = 2_000;
const SEED: u64 = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_under_load_lose_and_duplicate_nothing() {
    let site = Site::start().await;
    let (relay_url, mut readers) = (Arc::new(RelayUrl::default()), JoinSet::new());
    let (lines, messages) = (Arc::new(ReceivedEntries::default()), Arc::new(ReceivedEntries::default()));
    readers.spawn(follow_lines(Arc::clone(&relay_url), Arc::clone(&lines)));
    readers.spawn(follow_messages(Arc::clone(&relay_url), Arc::clone(&messages)));
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    kill_repeatedly(&site, &relay_url).await;

    let relay = RelayProcess::live(&site).await;
    relay_url.put(Some(relay.consumers.clone()));
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    let log = pages(&relay.consumers).await;
    assert_complete(&log, last_sent);
    assert!(log.len() as u64 > KILLS * 50, "there was load: {} events", log.len());
    for (transport, seen) in [("NDJSON", lines), ("WebSocket", messages)] {
        eventually(transport, WAIT_MAX, async || (seen.len() >= log.len()).then_some(())).await;
        assert!(seen.connections() > KILLS / 2, "{transport} connected {} times", seen.connections());
        assert!(seen.all() == log, "{transport} got each entry once, in order and unchanged");
    }
}

/// Kills relays; every fifth one while it starts, the others while they work.
async fn kill_repeatedly(site: &Site, relay_url: &RelayUrl) {
    let mut rng = fastrand::Rng::with_seed(SEED);
    for round in 1..=KILLS {
        let mut child = RelayProcess::spawn(site.folder.path(), site.config(), &[]);
        if round % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..100))).await;
            child.kill();
            continue;
        }
        let mut relay = RelayProcess::of(child).await;
        relay_url.put(Some(relay.consumers.clone()));
        relay.wait_until_live().await;
        tokio::time::sleep(Duration::from_millis(rng.u64(50..400))).await;
        relay.child.kill();
        relay_url.put(None);
        assert!(!relay.child.stderr().contains("damaged"), "{}", relay.child.stderr());
    }
}

/// The path from which a reader continues.
pub(super) fn events_path(after: Option<String>) -> String {
    let start = after.map_or("from=first".to_owned(), |id| format!("after={id}"));
    format!("/v1/streams/{STREAM}/events?{start}")
}

pub(super) async fn follow_lines(relay_url: Arc<RelayUrl>, seen: Arc<ReceivedEntries>) {
    follow_text(relay_url, seen, "application/x-ndjson", "\n", |line| Some(line).filter(|line| !line.is_empty())).await;
}

/// Follows a text whose parts end with `end`. `entry` extracts the entry from a line.
pub(super) async fn follow_text(
    relay_url: Arc<RelayUrl>,
    seen: Arc<ReceivedEntries>,
    accept: &str,
    end: &str,
    entry: impl Fn(&str) -> Option<&str>,
) {
    loop {
        let url = format!("{}{}", relay_url.get().await, events_path(seen.last_id()));
        let Ok(mut answer) = client().get(url).header("accept", accept).send().await else { continue };
        seen.connected();
        let mut rest = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            rest.extend_from_slice(&chunk);
            let Some(last) = rest.windows(end.len()).rposition(|piece| piece == end.as_bytes()) else { continue };
            let pieces: Vec<u8> = rest.drain(..last + end.len()).collect();
            let text = String::from_utf8(pieces).unwrap();
            text.lines().filter_map(&entry).for_each(|entry| seen.push(LogEntry::read(entry)));
        }
    }
}

pub(super) async fn follow_messages(relay_url: Arc<RelayUrl>, seen: Arc<ReceivedEntries>) {
    loop {
        let url = format!("{}{}", relay_url.get().await, events_path(seen.last_id())).replacen("http", "ws", 1);
        let Ok((mut socket, _)) = tokio_tungstenite::connect_async(url).await else { continue };
        seen.connected();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                seen.push(LogEntry::read(&text));
            }
        }
    }
}

/// State that the readers share with the test.
mod shared {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use parking_lot::Mutex;
    use tokio::sync::watch;

    use super::LogEntry;

    /// The URL of the running relay.
    #[derive(Default)]
    pub(crate) struct RelayUrl(watch::Sender<Option<String>>);

    impl RelayUrl {
        pub(crate) fn put(&self, url: Option<String>) {
            self.0.send_replace(url);
        }

        /// Waits for the URL. It may be that of a relay that was just killed, so a short sleep limits the rate of
        /// failed connections.
        pub(crate) async fn get(&self) -> String {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.0.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap()
        }
    }

    /// The entries that one consumer received.
    #[derive(Default)]
    pub(crate) struct ReceivedEntries(Mutex<Vec<LogEntry>>, AtomicU64);

    impl ReceivedEntries {
        pub(crate) fn push(&self, entry: LogEntry) {
            self.0.lock().push(entry);
        }

        pub(crate) fn connected(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }

        pub(crate) fn connections(&self) -> u64 {
            self.1.load(Ordering::Relaxed)
        }

        pub(crate) fn len(&self) -> usize {
            self.0.lock().len()
        }

        pub(crate) fn all(&self) -> Vec<LogEntry> {
            self.0.lock().clone()
        }

        pub(crate) fn last_id(&self) -> Option<String> {
            self.0.lock().last().map(|entry| entry.id.clone())
        }
    }
}

//! A log with one writer and several reading processes: stores on one server, each with its own tail and readers.

mod random_faults;

use std::time::Duration;

use redis::cmd;
use tokio::task::JoinSet;
use trunkline::{
    clock,
    event_log::{EventLog, EventLogs, LogReader, LogWriter, Read, Settings},
    model::{Epoch, Event, Fence, Mark, Offset, Source, StreamName},
    store::{
        AppendError, Store,
        redis::{Durability, RedisStore, connection::RedisTimeouts},
    },
    telemetry::chain,
};

use super::{
    fixture::{KEEP_ALL, StoreFixture, assert_found, checkpoint, redis_settings, redis_store},
    redis_only::{follow, last_of, promote, watched},
};
use crate::harness::{RedisServer, WAIT_MAX, eventually, throughout};

const READ_BYTES: usize = 20_000;

/// A log in one process.
struct FollowingReplica {
    log: EventLog,
    following: JoinSet<()>,
}

impl FollowingReplica {
    async fn at(store: &Store) -> Self {
        Self::with_tail(store, 1 << 20).await
    }

    async fn with_tail(store: &Store, tail_bytes: usize) -> Self {
        let stream: StreamName = "queues".parse().unwrap();
        let source = Source::new(&"acme".parse().unwrap(), &stream);
        let logs = EventLogs::open(store.clone(), &[(stream, source)], &Settings { tail_bytes }).await.unwrap();
        let log = logs.iter().next().unwrap().1.clone();
        Self { log, following: JoinSet::new() }
    }

    async fn following(store: &Store) -> Self {
        let mut replica = Self::at(store).await;
        replica.follow();
        replica
    }

    fn follow(&mut self) {
        let log = self.log.clone();
        self.following.spawn(async move { drop(log.follow().await) });
    }

    async fn claim(&mut self, under: Option<Fence>) -> LogWriter {
        self.following.shutdown().await;
        self.log.claim(under).await.unwrap()
    }

    fn subscribe(&self, after: u64) -> LogSubscriber {
        LogSubscriber { reader: self.log.reader(Offset(after)), received: Vec::new() }
    }

    fn last(&self) -> u64 {
        self.log.end().last.0
    }
}

/// A reader, and the marks of all its entries.
struct LogSubscriber {
    reader: LogReader,
    received: Vec<Mark>,
}

impl LogSubscriber {
    /// Reads until this mark.
    async fn reach(&mut self, mark: Mark) {
        while self.received.last() != Some(&mark) {
            let read = tokio::time::timeout(WAIT_MAX, self.reader.next(READ_BYTES)).await;
            match read.unwrap_or_else(|_| panic!("{mark} did not follow {:?}", self.received.last())).unwrap() {
                Read::Entries(views) => {
                    self.received.extend(views.iter().flat_map(|view| view.entries().map(|entry| entry.mark)));
                }
                other @ (Read::Trimmed { .. } | Read::Wiped { .. } | Read::End) => panic!("{other:?}"),
            }
        }
    }

    /// Reads all available entries.
    async fn reach_now(&mut self) {
        while let Some(read) = self.reader.try_next(READ_BYTES).await.unwrap() {
            let Read::Entries(views) = read else { panic!("{read:?}") };
            self.received.extend(views.iter().flat_map(|view| view.entries().map(|entry| entry.mark)));
        }
    }

    fn offsets(&self) -> Vec<u64> {
        self.received.iter().map(|mark| mark.offset.0).collect()
    }
}

async fn append(writer: &LogWriter, len: usize) -> Result<Mark, AppendError> {
    let events = vec![Event::internal("test.v1", &(), clock::wall()); len];
    let offset = writer.append(&events, checkpoint(7)).await?;
    Ok(Mark { epoch: writer.epoch(), offset })
}

/// Retries an append until it succeeds, as a stream does.
async fn until_done(writer: &LogWriter, len: usize) -> Mark {
    let end = clock::now() + WAIT_MAX;
    loop {
        match append(writer, len).await {
            Ok(mark) => return mark,
            Err(AppendError::Unavailable(_)) => assert!(clock::now() < end, "the append does not succeed"),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn store(server: &RedisServer) -> Store {
    Store::Redis(redis_store(server, KEEP_ALL, Durability::Written))
}

fn marks(epoch: Epoch, offsets: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = Mark> {
    offsets.map(move |offset| Mark { epoch, offset: Offset(offset) })
}

async fn one_appends_and_the_other_shows_it_once_and_in_order(fixture: StoreFixture) {
    let (mut here, there) = (
        FollowingReplica::at(&fixture.open(KEEP_ALL)).await,
        FollowingReplica::following(&fixture.open(KEEP_ALL)).await,
    );
    let mut early = there.subscribe(0);
    let writer = here.claim(None).await;
    let mut last = append(&writer, 1).await.unwrap();
    early.reach(last).await;
    for round in 0..40 {
        last = append(&writer, round % 9 + 1).await.unwrap();
    }
    early.reach(last).await;
    let mut late = there.subscribe(0);
    late.reach(last).await;
    assert_eq!(early.received, late.received);
    assert_eq!(early.received, marks(writer.epoch(), 1..=last.offset.0).collect::<Vec<_>>());
    assert_eq!(there.log.end(), here.log.end());
}

#[tokio::test]
async fn entries_appended_by_one_process_are_served_by_another() {
    one_appends_and_the_other_shows_it_once_and_in_order(StoreFixture::redis()).await;
}

#[tokio::test]
async fn entries_appended_by_one_process_are_served_by_another_with_valkey() {
    one_appends_and_the_other_shows_it_once_and_in_order(StoreFixture::valkey()).await;
}

#[tokio::test]
async fn entries_appended_by_one_process_are_served_by_another_with_a_cluster() {
    one_appends_and_the_other_shows_it_once_and_in_order(StoreFixture::cluster().await).await;
}

/// Writes a new fence into the head, as a claim does.
async fn draw(server: &RedisServer, number: u64) -> Fence {
    let fence = Fence { number, nonce: u128::from(number) << 64 | 7 };
    let mut command = cmd("HSET");
    command.arg("{trunkline:queues}:head").arg("number").arg(fence.number);
    command.arg("nonce").arg(format!("{:032x}", fence.nonce)).arg("turn").arg(0).arg("holder").arg("other");
    server.connection().run::<()>(&command).await.unwrap();
    fence
}

#[tokio::test]
async fn subscribers_stay_while_the_writer_changes_back_and_forth() {
    let server = RedisServer::volatile();
    let mut replicas =
        [FollowingReplica::following(&store(&server)).await, FollowingReplica::following(&store(&server)).await];
    let mut subscribers = [replicas[0].subscribe(0), replicas[1].subscribe(0)];
    let mut epochs = Vec::new();
    for number in 1..=8_u64 {
        let [one, two] = &mut replicas;
        let (owner, other) = if number % 2 == 1 { (one, two) } else { (two, one) };
        let fence = draw(&server, number).await;
        let former = other.log.claim(Some(Fence { number: number - 1, ..fence })).await;
        assert!(matches!(former, Err(AppendError::Fenced)));
        let writer = owner.claim(Some(fence)).await;
        assert_eq!(writer.fence(), fence);
        epochs.push(writer.epoch());
        let mut last = append(&writer, 3).await.unwrap();
        for subscriber in &mut subscribers {
            subscriber.reach(last).await;
        }
        for _ in 0..5 {
            last = append(&writer, 2).await.unwrap();
        }
        drop(writer);
        owner.follow();
        // Only one of the subscribers is up to date when the writer changes again.
        subscribers[usize::try_from(number % 2).unwrap()].reach(last).await;
    }
    let last = Mark { epoch: epochs[0], offset: Offset(8 * 13) };
    for subscriber in &mut subscribers {
        subscriber.reach(last).await;
        assert_eq!(subscriber.received, marks(epochs[0], 1..=8 * 13).collect::<Vec<_>>());
    }
    let holder: String =
        server.connection().run(cmd("HGET").arg("{trunkline:queues}:head").arg("holder")).await.unwrap();
    assert_eq!(holder, "other", "unknown fields of the head stay");
}

#[tokio::test]
async fn a_follower_resumes_after_the_server_was_down() {
    let mut server = RedisServer::durable();
    let mut here = FollowingReplica::at(&store(&server)).await;
    let there = FollowingReplica::following(&store(&server)).await;
    let mut subscriber = there.subscribe(0);
    let writer = here.claim(None).await;
    subscriber.reach(append(&writer, 4).await.unwrap()).await;
    server.kill();
    assert!(matches!(append(&writer, 2).await, Err(AppendError::Unavailable(_))));
    server.restart();
    let last = until_done(&writer, 2).await;
    subscriber.reach(last).await;
    assert_eq!(subscriber.offsets(), [1, 2, 3, 4, 5, 6]);

    // The next claim starts an epoch, although nothing was lost.
    let before = writer.epoch();
    drop(writer);
    let mut third = FollowingReplica::at(&store(&server)).await;
    let writer = third.claim(None).await;
    assert_ne!(writer.epoch(), before);
    eventually("the other process has the new epoch", async || there.log.end().lineage.current() == writer.epoch())
        .await;
    subscriber.reach(append(&writer, 2).await.unwrap()).await;
    assert_eq!(subscriber.received, marks(before, 1..=6).chain(marks(writer.epoch(), 7..=8)).collect::<Vec<_>>());
    assert_eq!(there.log.end().lineage.earlier(), [(before, Offset(6))]);
}

#[tokio::test]
async fn after_a_rollback_readers_continue_in_the_new_epoch_where_the_log_was_truncated() {
    let (server, replica) = (RedisServer::volatile(), RedisServer::volatile());
    follow(&replica, &server).await;
    let mut here = FollowingReplica::at(&store(&server)).await;
    let there = FollowingReplica::following(&store(&server)).await;
    let without_tail = {
        let mut replica = FollowingReplica::with_tail(&store(&server), 0).await;
        replica.follow();
        replica
    };
    let writer = here.claim(None).await;
    append(&writer, 5).await.unwrap();
    eventually("the replica has it", async || last_of(&replica).await == Some("5".to_owned())).await;
    promote(&replica).await;
    let lost = append(&writer, 3).await.unwrap();
    let old = writer.epoch();
    let mut ahead = [here.subscribe(0), there.subscribe(0), without_tail.subscribe(0)];
    for subscriber in &mut ahead {
        subscriber.reach(lost).await;
    }
    let mut behind = [here.subscribe(3), there.subscribe(3), without_tail.subscribe(3), there.subscribe(7)];
    let mut unaware = FollowingReplica::with_tail(&store(&server), 0).await;
    let mut stale = unaware.subscribe(3);

    // Entries that the replica did not have are lost.
    follow(&server, &replica).await;
    promote(&server).await;
    let moved = append(&writer, 1).await;
    assert!(matches!(moved, Err(AppendError::Diverged(_) | AppendError::Unavailable(_))), "{moved:?}");
    stale.reach_now().await;
    assert_eq!(stale.received, marks(old, 4..=5).collect::<Vec<_>>(), "the new epoch is not known yet");
    let fence = writer.fence();
    drop(writer);
    let writer = here.claim(Some(fence)).await;
    assert_found(&writer.claimed_state().checkpoint, &checkpoint(7));
    assert_ne!(writer.epoch(), old);
    let last = append(&writer, 4).await.unwrap();
    assert_eq!(last.offset, Offset(9));
    let new = writer.epoch();
    for subscriber in &mut ahead {
        subscriber.reach(last).await;
        assert_eq!(subscriber.received, marks(old, 1..=8).chain(marks(new, 6..=9)).collect::<Vec<_>>());
    }
    for (subscriber, after) in behind.iter_mut().zip([3, 3, 3, 7]) {
        subscriber.reach(last).await;
        assert_eq!(subscriber.received, marks(old, after + 1..=5).chain(marks(new, 6..=9)).collect::<Vec<_>>());
    }
    for mut subscriber in [there.subscribe(0), here.subscribe(0)] {
        subscriber.reach(last).await;
        assert_eq!(subscriber.received, marks(old, 1..=5).chain(marks(new, 6..=9)).collect::<Vec<_>>());
    }

    // An earlier entry with the same offset does not count as the append.
    let mut misled = unaware.subscribe(2);
    for subscriber in [&mut stale, &mut misled] {
        subscriber.reach_now().await;
        assert_eq!(subscriber.received.last(), marks(old, 5..=5).last().as_ref());
    }
    unaware.follow();
    for (mut subscriber, after) in [(stale, 3), (misled, 2)] {
        subscriber.reach(last).await;
        assert_eq!(subscriber.received, marks(old, after + 1..=5).chain(marks(new, 6..=9)).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn entries_of_an_unknown_epoch_are_skipped_with_a_gap() {
    const LOG: &str = "{trunkline:queues}:log";
    let server = RedisServer::volatile();
    let mut here = FollowingReplica::at(&store(&server)).await;
    append(&here.claim(None).await, 3).await.unwrap();
    let dump: redis::Value = server.connection().run(cmd("DUMP").arg(LOG)).await.unwrap();
    server.connection().run::<()>(&cmd("FLUSHALL")).await.unwrap();
    let mut here = FollowingReplica::at(&store(&server)).await;
    let writer = here.claim(None).await;
    append(&writer, 5).await.unwrap();
    let redis::Value::BulkString(dump) = dump else { panic!("no dump") };
    server.connection().run::<()>(cmd("RESTORE").arg(LOG).arg(0).arg(dump).arg("REPLACE")).await.unwrap();
    append(&writer, 1).await.unwrap();
    let there = FollowingReplica::at(&store(&server)).await;
    let (mut reader, mut received) = (there.log.reader(Offset::START), Vec::new());
    while received.last() != Some(&"6".to_owned()) {
        let read = tokio::time::timeout(WAIT_MAX, reader.try_next(READ_BYTES)).await.expect("a read in time");
        received.push(match read.unwrap().expect("there is more") {
            Read::Entries(views) => views[0].batch.first().to_string(),
            Read::Trimmed { after, first } => format!("trimmed {after} to {}", first.offset),
            other @ (Read::Wiped { .. } | Read::End) => panic!("{other:?}"),
        });
    }
    assert_eq!(received, ["trimmed 0 to 4", "trimmed 3 to 6", "6"]);
}

#[tokio::test]
async fn a_wiped_log_is_reported_and_read_from_its_start() {
    let server = RedisServer::volatile();
    let mut here = FollowingReplica::at(&store(&server)).await;
    let there = FollowingReplica::following(&store(&server)).await;
    let mut subscriber = there.subscribe(0);
    let writer = here.claim(None).await;
    subscriber.reach(append(&writer, 4).await.unwrap()).await;
    server.connection().run::<()>(&cmd("FLUSHALL")).await.unwrap();
    assert!(matches!(append(&writer, 1).await, Err(AppendError::Fenced)));
    drop(writer);
    let writer = here.claim(None).await;
    let last = append(&writer, 2).await.unwrap();
    let read = tokio::time::timeout(WAIT_MAX, subscriber.reader.next(READ_BYTES)).await.unwrap().unwrap();
    let Read::Wiped { first } = read else { panic!("{read:?}") };
    assert_eq!(first, Mark { epoch: writer.epoch(), offset: Offset(1) });
    subscriber.received.clear();
    subscriber.reach(last).await;
    assert_eq!(subscriber.received, marks(writer.epoch(), 1..=2).collect::<Vec<_>>());
}

#[tokio::test]
async fn with_required_replicas_no_entry_is_served_before_it_is_replicated() {
    let (primary, replica) = (RedisServer::volatile(), RedisServer::volatile());
    let store = || Store::Redis(redis_store(&primary, KEEP_ALL, Durability::Replicated));
    let mut here = FollowingReplica::at(&store()).await;
    let there = FollowingReplica::following(&store()).await;
    follow(&replica, &primary).await;
    let writer = here.claim(None).await;
    let mut subscriber = there.subscribe(0);
    subscriber.reach(until_done(&writer, 3).await).await;
    for _ in 0..10 {
        append(&writer, 2).await.unwrap();
    }
    subscriber.reach(append(&writer, 1).await.unwrap()).await;
    assert_eq!(subscriber.offsets(), (1..=24).collect::<Vec<_>>());

    replica.pause();
    assert!(matches!(append(&writer, 2).await, Err(AppendError::Unavailable(_))));
    assert_eq!(last_of(&primary).await, Some("26".to_owned()), "the primary has it");
    let third = FollowingReplica::following(&store()).await;
    throughout(Duration::from_secs(1), "no reader gets it", async || {
        [here.last(), there.last(), third.last()] == [24; 3]
    })
    .await;
    replica.resume();
    let last = until_done(&writer, 2).await;
    subscriber.reach(last).await;
    assert_eq!(last.offset, Offset(26));
    eventually("all readers get it", async || [here.last(), third.last()] == [26; 2]).await;

    // A writer that starts without a replica serves the replicated entries, and the others after its first append.
    replica.pause();
    assert!(matches!(append(&writer, 1).await, Err(AppendError::Unavailable(_))));
    let mut third = FollowingReplica::at(&store()).await;
    let writer = third.claim(None).await;
    assert_eq!(third.last(), 26);
    replica.resume();
    let last = until_done(&writer, 1).await;
    assert_eq!(last.offset, Offset(28));
    subscriber.reach(last).await;
    assert_eq!(subscriber.offsets(), (1..=28).collect::<Vec<_>>());
    let mut own = third.subscribe(0);
    own.reach(last).await;
    assert_eq!(own.received, subscriber.received);
}

#[tokio::test]
async fn a_follower_of_a_quiet_log_polls_twice_a_second() {
    let server = RedisServer::volatile();
    let settings = redis_settings(&server.url(), KEEP_ALL, Durability::Replicated);
    let settings = trunkline::store::redis::Settings { timeouts: RedisTimeouts::default(), ..settings };
    let quiet = Store::Redis(RedisStore::new(settings));
    let mut here = FollowingReplica::at(&store(&server)).await;
    let there = FollowingReplica::following(&quiet).await;
    let writer = here.claim(None).await;
    there.subscribe(0).reach(append(&writer, 1).await.unwrap()).await;
    let watcher = server.connection();
    let commands = async || -> u64 {
        let about: String = watcher.run(cmd("INFO").arg("commandstats")).await.unwrap();
        let calls = about.lines().filter(|line| !line.starts_with("cmdstat_info:"));
        let calls = calls.filter_map(|line| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok());
        calls.sum()
    };
    let (before, seconds) = (commands().await, 3);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let asked = commands().await - before;
    assert!((2..=2 * seconds + 2).contains(&asked), "{asked} commands in {seconds} s");
}

#[tokio::test]
async fn a_follower_behind_sentinels_follows_to_the_new_primary() {
    let (mut primary, replica) = (RedisServer::volatile(), RedisServer::volatile());
    follow(&replica, &primary).await;
    let (_sentinel, url) = watched(&primary).await;
    let store = || Store::Redis(RedisStore::new(redis_settings(&url, KEEP_ALL, Durability::Written)));
    let mut here = FollowingReplica::at(&store()).await;
    let there = FollowingReplica::following(&store()).await;
    let mut subscriber = there.subscribe(0);
    let writer = here.claim(None).await;
    subscriber.reach(append(&writer, 5).await.unwrap()).await;
    eventually("the replica has it", async || last_of(&replica).await == Some("5".to_owned())).await;
    primary.kill();
    let last = until_done(&writer, 2).await;
    subscriber.reach(last).await;
    assert_eq!(subscriber.offsets(), (1..=7).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_late_command_of_an_earlier_claim_changes_nothing() {
    let server = RedisServer::volatile();
    let (mut here, mut there) =
        (FollowingReplica::at(&store(&server)).await, FollowingReplica::at(&store(&server)).await);
    let earlier = here.claim(None).await;
    append(&earlier, 1).await.unwrap();
    let writer = there.claim(Some(earlier.fence())).await;
    assert_eq!(writer.epoch(), earlier.epoch());
    append(&writer, 2).await.unwrap();
    assert!(matches!(append(&earlier, 2).await, Err(AppendError::Diverged(_))));
    let last = append(&writer, 1).await.unwrap();
    assert_eq!(last.offset, Offset(4));
    let mut subscriber = there.subscribe(0);
    subscriber.reach(last).await;
    assert_eq!(subscriber.offsets(), [1, 2, 3, 4]);
    drop(earlier);
    let earlier = here.claim(Some(writer.fence())).await;
    assert_eq!(append(&earlier, 1).await.unwrap().offset, Offset(5), "the writer continues after a new claim");
}

#[tokio::test]
async fn a_follower_ends_with_its_store() {
    let server = RedisServer::volatile();
    let store = store(&server);
    let replica = FollowingReplica::at(&store).await;
    let log = replica.log.clone();
    let closing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        store.close().await;
    };
    let (ended, ()) = tokio::join!(tokio::time::timeout(WAIT_MAX, log.follow()), closing);
    assert!(chain(&ended.expect("it ends").unwrap_err()).contains("closed"));
}

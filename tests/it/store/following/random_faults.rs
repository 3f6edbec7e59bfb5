//! Random faults on a shared log: in the end, its readers have the entries of the log.

use super::*;

/// Two processes with one writer on a server that sometimes loses its newest entries.
struct RandomFaults {
    rng: fastrand::Rng,
    server: RedisServer,
    /// The replica, which has the state of the server at the partition.
    copy: RedisServer,
    is_partitioned: bool,
    replicas: [FollowingReplica; 2],
    owner: usize,
    writer: Option<LogWriter>,
    subscribers: Vec<LogSubscriber>,
}

impl RandomFaults {
    async fn start(seed: u64) -> Self {
        let (server, copy) = (RedisServer::volatile(), RedisServer::volatile());
        let replicas = [FollowingReplica::following(&store(&server)).await, {
            let mut small = FollowingReplica::with_tail(&store(&server), 6_000).await;
            small.follow();
            small
        }];
        let subscribers = (0..6).map(|number| replicas[number % 2].subscribe(0)).collect();
        let rng = fastrand::Rng::with_seed(seed);
        let mut scenario =
            Self { rng, server, copy, is_partitioned: false, replicas, owner: 0, writer: None, subscribers };
        scenario.claim(None).await;
        // A log without entries would count as wiped, which another test covers.
        scenario.append().await;
        scenario
    }

    async fn step(&mut self) {
        match self.rng.u8(..20) {
            0..=8 => drop(self.append().await),
            9..=14 => self.read().await,
            15..=16 => self.change_writer().await,
            17..=18 if self.is_partitioned => self.fail_over().await,
            17..=18 => self.partition().await,
            _ => tokio::time::sleep(Duration::from_millis(self.rng.u64(..300))).await,
        }
    }

    async fn append(&mut self) -> Mark {
        let (len, end) = (self.rng.usize(1..6), clock::now() + WAIT_MAX);
        loop {
            assert!(clock::now() < end, "the append does not succeed");
            match append(self.writer.as_ref().unwrap(), len).await {
                Ok(mark) => return mark,
                Err(AppendError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(AppendError::Diverged(_)) => {
                    let fence = self.writer.as_ref().unwrap().fence();
                    self.claim(Some(fence)).await;
                }
                // The rollback removed the fence, too.
                Err(AppendError::Fenced) => self.claim(None).await,
                Err(error @ (AppendError::UnusableLog(_) | AppendError::Broken(_))) => panic!("{error}"),
            }
        }
    }

    async fn read(&mut self) {
        let number = self.rng.usize(..self.subscribers.len());
        let subscriber = &mut self.subscribers[number];
        for _ in 0..self.rng.u8(..4) {
            match subscriber.reader.try_next(self.rng.usize(1..3_000)).await.unwrap() {
                Some(Read::Entries(views)) => {
                    subscriber.received.extend(views.iter().flat_map(|view| view.entries().map(|entry| entry.mark)));
                }
                Some(other) => panic!("{other:?}"),
                None => return,
            }
        }
    }

    async fn change_writer(&mut self) {
        self.writer = None;
        self.replicas[self.owner].follow();
        self.owner = 1 - self.owner;
        self.claim(None).await;
    }

    async fn claim(&mut self, under: Option<Fence>) {
        self.writer = None;
        let replica = &mut self.replicas[self.owner];
        replica.following.shutdown().await;
        let end = clock::now() + WAIT_MAX;
        while self.writer.is_none() {
            assert!(clock::now() < end, "the claim does not succeed");
            match replica.log.claim(under).await {
                Ok(writer) => self.writer = Some(writer),
                Err(AppendError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn partition(&mut self) {
        follow(&self.copy, &self.server).await;
        promote(&self.copy).await;
        self.is_partitioned = true;
    }

    /// Everything since the partition is lost.
    async fn fail_over(&mut self) {
        follow(&self.server, &self.copy).await;
        promote(&self.server).await;
        self.is_partitioned = false;
    }

    async fn finish(mut self) {
        let last = self.append().await;
        let mut late = [self.replicas[0].subscribe(0), self.replicas[1].subscribe(0)];
        for subscriber in self.subscribers.iter_mut().chain(&mut late) {
            subscriber.reach(last).await;
        }
        assert_eq!(late[0].received, surviving_marks(&late[1].received));
        for subscriber in &self.subscribers {
            assert_eq!(surviving_marks(&subscriber.received), late[0].received, "{:?}", subscriber.received);
        }
    }
}

/// The received marks that survive: each new epoch continues where the log was truncated.
fn surviving_marks(had: &[Mark]) -> Vec<Mark> {
    let mut left: Vec<Mark> = Vec::new();
    for mark in had {
        while left.last().is_some_and(|last| last.offset >= mark.offset) {
            let gone = left.pop().unwrap();
            assert_ne!(gone.epoch, mark.epoch, "{mark} after {gone}: {had:?}");
        }
        assert_eq!(left.last().map_or(0, |last| last.offset.0) + 1, mark.offset.0, "{mark} leaves a hole: {had:?}");
        left.push(*mark);
    }
    left
}

#[tokio::test]
async fn after_random_faults_readers_have_the_entries_of_the_log() {
    for _ in 0..4 {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut scenario = RandomFaults::start(seed).await;
        for _ in 0..60 {
            scenario.step().await;
        }
        scenario.finish().await;
    }
}

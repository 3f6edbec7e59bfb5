//! The task of one replica: tells the lease machine what happens, and carries out what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    seat::{Owning, Part, Said, Stage},
};
use crate::{
    clock,
    model::{Fence, ReplicaId, StreamName},
    protocol::{
        backoff::Curve,
        lease::{self, Boot, Input, Note, Now, Outcome, Output, Record, Request},
    },
    random,
    store::redis::{
        connection::CommandError,
        registry::{Ails, Heard, Members, Records, Registry, Word},
    },
    telemetry::metrics,
};

/// A stream that is given up has this time to make durable what it heard.
const CLOSE_MAX: Duration = Duration::from_secs(4);

/// Words under way; what is beyond them is not said. Each is a hint.
const WORDS_MAX: usize = 256;

/// A record that cannot be read is looked at again after this time.
const UNREADABLE_WAIT: Duration = Duration::from_secs(1);

/// Values that are remembered as reported.
const REPORTED_MAX: usize = 256;

/// Delays between tries to listen.
const LISTEN: Curve = Curve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.5 };

/// What the owner of the handle wants.
#[derive(Debug)]
pub(super) enum Wish {
    Drain { patience: Duration, left: oneshot::Sender<()> },
}

/// The task's state.
pub(super) struct Shell {
    settings: lease::Settings,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    said: mpsc::Receiver<Said>,
    wishes: mpsc::Receiver<Wish>,
    work: FuturesUnordered<Work>,
    words: FuturesUnordered<Work>,
    /// Successors that are live, while the old session is asked whether it has said all.
    ready: BTreeMap<StreamName, ReplicaId>,
    /// Records that are to be given up as soon as their streams have closed.
    closing: BTreeMap<StreamName, (Fence, Record)>,
    /// The newest fence of each stream that this replica asked for itself: any other was handed over.
    taken: BTreeMap<StreamName, Fence>,
    flushes: u32,
    /// Streams that are live here.
    live: BTreeSet<StreamName>,
    /// Streams that do not hear all that is configured.
    degraded: BTreeSet<StreamName>,
    /// Streams that are owned here and whose logs cannot be used, and why.
    failed: BTreeMap<StreamName, String>,
    /// Whether the store did not answer when it was last asked.
    away: bool,
    /// Values that cannot be read and were reported. At most [`REPORTED_MAX`]: beyond them it begins again.
    reported: BTreeSet<String>,
    left: Option<oneshot::Sender<()>>,
}

/// Something under way that answers once.
type Work = Pin<Box<dyn Future<Output = Option<Done>> + Send>>;

/// What came of it.
enum Done {
    Told(Input),
    /// Who lives.
    Renewed(Members),
    Listed(Records),
    Unanswered(Request, String),
    /// A stream had its time to close.
    Closed(StreamName),
    Left,
}

enum Woken {
    Stop,
    Done(Option<Done>),
    Said(Said),
    Heard(Heard),
    Wish(Wish),
    Timer,
}

impl Shell {
    pub(super) fn new(
        settings: lease::Settings,
        shared: Arc<Shared>,
        registry: Registry,
        said: mpsc::Receiver<Said>,
        wishes: mpsc::Receiver<Wish>,
    ) -> Self {
        Self {
            settings,
            shared,
            registry: Arc::new(registry),
            said,
            wishes,
            work: FuturesUnordered::new(),
            words: FuturesUnordered::new(),
            ready: BTreeMap::new(),
            closing: BTreeMap::new(),
            taken: BTreeMap::new(),
            flushes: 0,
            live: BTreeSet::new(),
            degraded: BTreeSet::new(),
            failed: BTreeMap::new(),
            away: false,
            reported: BTreeSet::new(),
            left: None,
        }
    }

    /// Runs until the stop signal. A replica that was drained before leaves nothing behind.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let (hearing, mut heard) = mpsc::channel(WORDS_MAX);
        let mut listening = Box::pin(listen(Arc::clone(&self.registry), hearing));
        loop {
            self.carry_out();
            let wake = self.shared.lease().poll_timeout();
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => Woken::Stop,
                Some(wish) = self.wishes.recv() => Woken::Wish(wish),
                Some(done) = self.work.next(), if !self.work.is_empty() => Woken::Done(done),
                Some(said) = self.said.recv() => Woken::Said(said),
                Some(heard) = heard.recv() => Woken::Heard(heard),
                Some(done) = self.words.next(), if !self.words.is_empty() => Woken::Done(done),
                () = &mut listening => Woken::Timer,
                () = sleep_until(wake) => Woken::Timer,
            };
            match woken {
                Woken::Stop => return Ok(()),
                Woken::Done(None) => (),
                Woken::Done(Some(done)) => self.done(done),
                Woken::Said(said) => self.said(said),
                Woken::Heard(heard) => self.heard(heard),
                Woken::Wish(Wish::Drain { patience, left }) => {
                    self.left = Some(left);
                    self.handle(Input::Drain { until: clock::boot() + patience });
                }
                Woken::Timer => self.shared.lease().handle_timeout(now()),
            }
        }
    }

    fn handle(&self, input: Input) {
        self.shared.lease().handle(input, now());
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Told(input) => {
                self.answered();
                self.handle(input);
            }
            Done::Renewed(Members { lives, unreadable }) => {
                self.answered();
                self.shared.renewed();
                metrics::replica_members(lives.len());
                self.report_members(&unreadable);
                *self.shared.unreadable_members() = unreadable;
                let members = lives.iter().map(|life| life.member).collect();
                *self.shared.lives() = lives;
                self.handle(Input::Renewed { members });
            }
            Done::Listed(Records { held, unreadable }) => {
                self.answered();
                self.report_records(&unreadable);
                *self.shared.unreadable() = unreadable;
                self.handle(Input::Listed { records: held });
            }
            Done::Unanswered(request, why) => {
                if request == Request::Renew {
                    metrics::replica_renewal_failed();
                    self.shared.renewal_failed(why.clone());
                }
                if !std::mem::replace(&mut self.away, true) {
                    tracing::warn!(why, "the store does not answer this replica: what it owns it may lose");
                }
                self.handle(Input::Unanswered(request));
            }
            Done::Closed(stream) => self.give_up(&stream),
            Done::Left => {
                if let Some(left) = self.left.take() {
                    // An error says that nobody waits any more.
                    left.send(()).unwrap_or(());
                }
            }
        }
    }

    fn report_members(&mut self, unreadable: &[String]) {
        for value in unreadable {
            if self.is_news(value) {
                tracing::error!(value, "a replica's membership cannot be read; that replica is not counted");
            }
        }
    }

    fn report_records(&mut self, unreadable: &BTreeMap<StreamName, String>) {
        for (stream, reason) in unreadable {
            if self.is_news(reason) {
                tracing::error!(%stream, reason, "the stream's record cannot be read; the stream waits, others go on");
            }
        }
    }

    /// Whether a value was not reported before.
    fn is_news(&mut self, value: &str) -> bool {
        if self.reported.len() >= REPORTED_MAX {
            self.reported.clear();
        }
        self.reported.insert(value.to_owned())
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.away) {
            tracing::info!("the store answers this replica again");
        }
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Live { stream, live } => self.live(stream, live),
            Said::Degraded { stream, degraded: true } => drop(self.degraded.insert(stream)),
            Said::Degraded { stream, degraded: false } => drop(self.degraded.remove(&stream)),
            Said::Failed { stream, why: Some(why) } => drop(self.failed.insert(stream, why)),
            Said::Failed { stream, why: None } => drop(self.failed.remove(&stream)),
            Said::Flushed { stream } => {
                if let Some(from) = self.ready.remove(&stream) {
                    self.handle(Input::Heard { from, note: Note::Ready { stream } });
                }
            }
            Said::Closed { stream } => self.give_up(&stream),
            Said::Fenced { stream, fence } => {
                tracing::warn!(%stream, %fence, "the store refused an append: the head of the log names another owner or another fence");
                self.handle(Input::Fenced { stream, fence });
            }
        }
    }

    fn live(&mut self, stream: StreamName, live: bool) {
        if live {
            self.live.insert(stream.clone());
        } else {
            self.live.remove(&stream);
        }
        self.handle(Input::Prepared { stream, live });
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Beat { from } => self.handle(Input::Beat { from }),
            Heard::Note { from, note: Note::Ready { stream } } => self.flush(from, stream),
            Heard::Note { from, note } => self.handle(Input::Heard { from, note }),
        }
    }

    /// Before the record moves, what only the old session was sent has to be durable.
    fn flush(&mut self, successor: ReplicaId, stream: StreamName) {
        if let Part::Owning(owning) = self.shared.part(&stream)
            && owning.stage != Stage::Closing
        {
            self.flushes += 1;
            self.shared.assign(&stream, Part::Owning(Owning { stage: Stage::Flushing(self.flushes), ..owning }));
            self.ready.insert(stream, successor);
        }
    }

    /// Carries out everything that the machine wants.
    fn carry_out(&mut self) {
        loop {
            let Some(output) = self.shared.lease().poll_output() else { return };
            match output {
                Output::Renew { limit } => self.renew(limit),
                Output::List => self.list(),
                Output::Change { stream, expected, record } => self.change(stream, expected, record),
                Output::Beat => self.say(Word::Beat),
                Output::Send { to, note } => {
                    tracing::debug!(%to, ?note, "to another replica");
                    self.say(Word::Note { to, note });
                }
                Output::Follow { stream } | Output::Prepare { stream } => {
                    tracing::info!(%stream, "a session is held ready for this stream");
                    self.shared.assign(&stream, Part::Standing);
                }
                Output::Own { stream, fence } => self.own(&stream, fence),
                Output::Release { stream } => {
                    tracing::info!(%stream, "the stream is not this replica's");
                    self.ready.remove(&stream);
                    self.shared.assign(&stream, Part::Apart);
                }
                Output::StepDown => tracing::warn!("nothing is appended until the store has answered"),
                Output::Resume => self.shared.rights.send_modify(|moved| *moved += 1),
                Output::Leave => self.leave(),
            }
        }
    }

    fn own(&mut self, stream: &StreamName, fence: Fence) {
        let handed = self.taken.get(stream) != Some(&fence);
        tracing::info!(%stream, %fence, handed, "the stream is this replica's");
        let owning = Owning { fence: Some(fence), handed, stage: Stage::Keeping };
        self.shared.assign(stream, Part::Owning(owning));
        self.shared.rights.send_modify(|moved| *moved += 1);
    }

    fn renew(&self, limit: usize) {
        let (registry, life) = (Arc::clone(&self.registry), self.settings.life);
        let is_ailing = |stream: &&StreamName| self.shared.part(stream) != Part::Apart && !self.live.contains(*stream);
        let ailing: Vec<StreamName> = self.settings.streams.iter().filter(is_ailing).cloned().collect();
        let degraded: Vec<StreamName> =
            self.degraded.iter().filter(|stream| self.live.contains(*stream)).cloned().collect();
        let ails = Ails { ailing, degraded, failed: self.failed.clone() };
        self.work.push(Box::pin(async move {
            Some(match registry.renew(limit, &ails, life).await {
                Ok(lives) => Done::Renewed(lives),
                Err(why) => Done::Unanswered(Request::Renew, why.to_string()),
            })
        }));
    }

    fn list(&self) {
        let (registry, streams) = (Arc::clone(&self.registry), self.settings.streams.clone());
        self.work.push(Box::pin(async move {
            Some(match registry.records(&streams).await {
                Ok(records) => Done::Listed(records),
                Err(why) => Done::Unanswered(Request::List, why.to_string()),
            })
        }));
    }

    /// A record is given up only after its stream has closed; any other change is made at once.
    fn change(&mut self, stream: StreamName, expected: Option<Fence>, record: Record) {
        if let (None, Part::Owning(owning), Some(fence)) = (record.holder, self.shared.part(&stream), expected) {
            self.shared.assign(&stream, Part::Owning(Owning { stage: Stage::Closing, ..owning }));
            self.closing.insert(stream.clone(), (fence, record));
            self.work.push(Box::pin(async move {
                tokio::time::sleep(CLOSE_MAX).await;
                Some(Done::Closed(stream))
            }));
            return;
        }
        if record.holder == Some(self.settings.me) {
            self.taken.insert(stream.clone(), record.fence);
        }
        self.set(stream, expected, record);
    }

    fn give_up(&mut self, stream: &StreamName) {
        if let Some((fence, record)) = self.closing.remove(stream) {
            self.set(stream.clone(), Some(fence), record);
        }
    }

    fn set(&self, stream: StreamName, expected: Option<Fence>, record: Record) {
        let registry = Arc::clone(&self.registry);
        let is_unreadable = self.shared.unreadable().contains_key(&stream);
        self.work.push(Box::pin(async move {
            if is_unreadable {
                // What cannot be read is not written over. The machine asks again after this.
                tokio::time::sleep(UNREADABLE_WAIT).await;
                return Some(Done::Told(Input::Changed { stream, fence: record.fence, outcome: Outcome::Refused }));
            }
            let outcome = match registry.change(&stream, expected, record).await {
                Ok(true) => Outcome::Done,
                Ok(false) => Outcome::Refused,
                Err(error) => {
                    tracing::info!(%stream, %error, "a record could not be changed");
                    match error {
                        CommandError::NotSent(_) | CommandError::Refused { .. } => Outcome::Refused,
                        CommandError::NoAnswer(_) => Outcome::Unknown,
                    }
                }
            };
            Some(Done::Told(Input::Changed { stream, fence: record.fence, outcome }))
        }));
    }

    fn say(&self, word: Word) {
        if self.words.len() >= WORDS_MAX {
            return;
        }
        let registry = Arc::clone(&self.registry);
        self.words.push(Box::pin(async move {
            if let Err(error) = registry.say(&word).await {
                tracing::debug!(%error, ?word, "a word could not be said");
            }
            None
        }));
    }

    fn leave(&self) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            if let Err(error) = registry.leave().await {
                tracing::debug!(%error, "the others will notice that this replica left");
            }
            Some(Done::Left)
        }));
    }
}

/// Listens for ever, and begins anew whenever the connection is lost.
async fn listen(registry: Arc<Registry>, hearing: mpsc::Sender<Heard>) {
    let mut failures = 0;
    loop {
        if let Ok(mut words) = registry.listen().await {
            failures = 0;
            while let Some(heard) = words.next().await {
                // A word for which there is no room is lost, as any may be.
                drop(hearing.try_send(heard));
            }
        }
        tokio::time::sleep(LISTEN.delay(failures, fastrand::f64())).await;
        failures = failures.saturating_add(1);
    }
}

fn now() -> Now {
    Now { boot: clock::boot(), nonce: random::u128() }
}

async fn sleep_until(at: Option<Boot>) {
    match at {
        Some(at) => tokio::time::sleep(at.saturating_sub(clock::boot())).await,
        None => std::future::pending().await,
    }
}

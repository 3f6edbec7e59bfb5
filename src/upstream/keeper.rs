//! The task of one stream for as long as the process lives: reads the log while another replica keeps the stream, and
//! begins the work with the platform when its seat says so.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Asked,
    appender::Appender,
    board::Board,
    holding::{self, Holding, REFUSED_WAIT},
    rest::Rest,
    shell::{Ended, Shell, now},
    socket::Dialler,
    sockets::Sockets,
};
use crate::{
    auth::Tokens,
    event_log::{EventLog, Writer},
    model::Fence,
    protocol::stream::{Input, Settings, Stream},
    replica::{Owning, Part, Seat, Stage},
    store::AppendError,
};

/// What it needs.
pub(super) struct Keeper {
    pub(super) rules: Settings,
    pub(super) seat: Seat,
    pub(super) log: EventLog,
    /// The log was claimed before.
    pub(super) writer: Option<Writer>,
    pub(super) tokens: Tokens,
    pub(super) wishes: mpsc::Receiver<Asked>,
    pub(super) board: Arc<Board>,
    pub(super) dialler: Dialler,
    pub(super) rest: Rest,
}

impl Keeper {
    /// Runs until the stop signal.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            let ended = match self.seat.part() {
                Part::Apart => {
                    self.read(&stop).await;
                    Ended::Released
                }
                Part::Standing => self.stand(&stop).await?,
                Part::Owning(Owning { stage: Stage::Closing, .. }) => {
                    self.seat.say_closed().await;
                    self.wait(&stop).await;
                    Ended::Released
                }
                Part::Owning(owning) => self.own(owning, &stop).await?,
            };
            if ended == Ended::Stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Another replica keeps the stream: its entries are shown to readers here.
    async fn read(&mut self, stop: &CancellationToken) {
        self.board.left();
        self.seat.say_failed(None).await;
        let mut following = holding::following(&self.log);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.seat.changed() => return,
                // Whoever asked learns by the missing answer that the stream has just gone elsewhere.
                Some(asked) = self.wishes.recv() => drop(asked),
                () = &mut following => (),
            }
        }
    }

    /// Until the seat says something else.
    async fn wait(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => (),
            () = self.seat.changed() => (),
        }
    }

    /// A session is held ready.
    async fn stand(&mut self, stop: &CancellationToken) -> anyhow::Result<Ended> {
        self.board.disowned();
        self.seat.say_failed(None).await;
        let mut machine = Stream::standby(self.rules.clone(), now());
        if !machine.compares()
            && let Some(position) = holding::position(&self.log, self.rules.feed).await
        {
            machine.handle(Input::Follow(position), now());
        }
        let looks = !machine.compares();
        let holding = Holding::standing(&self.log);
        let shell = self.shell(machine, holding);
        if looks {
            shell.look_at_position();
        }
        shell.run(stop.clone()).await
    }

    /// The stream is this process's, and nothing was prepared for it.
    async fn own(&mut self, owning: Owning, stop: &CancellationToken) -> anyhow::Result<Ended> {
        let Some(claimed) = self.claim(owning.fence, stop).await else { return Ok(Ended::Released) };
        let writer = match (claimed, owning.fence) {
            (Ok(writer), _) => writer,
            (Err(AppendError::Fenced), Some(fence)) => {
                self.seat.say_fenced(fence).await;
                self.wait(stop).await;
                return Ok(Ended::Released);
            }
            (Err(error), _) => return Err(error.into()),
        };
        let machine = Stream::new(self.rules.clone(), holding::opening(&writer), now());
        let appender = Appender { writer: Arc::new(writer), fence: owning.fence, rights: self.seat.rights() };
        let holding = Holding::Owning { appender, owning: Owning { stage: Stage::Keeping, ..owning } };
        let mut shell = self.shell(machine, holding);
        shell.take_part();
        shell.run(stop.clone()).await
    }

    /// Claims the log, waiting also for an operator to mend what the store holds of it. None when the stop signal or
    /// another part came first.
    async fn claim(&mut self, fence: Option<Fence>, stop: &CancellationToken) -> Option<Result<Writer, AppendError>> {
        if let Some(writer) = self.writer.take() {
            return Some(Ok(writer));
        }
        let mut wait = self.board.claim_wait();
        loop {
            self.seat.say_failed(self.board.refused_log()).await;
            let log = self.log.clone();
            let claiming = async move {
                tokio::time::sleep(wait.unwrap_or_default()).await;
                holding::claim(&log, fence).await
            };
            let claimed = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = self.seat.changed() => return None,
                claimed = claiming => claimed,
            };
            let Err(AppendError::Refused(why)) = claimed else {
                self.board.log_claimed();
                self.seat.say_failed(self.board.refused_log()).await;
                return Some(claimed);
            };
            self.board.log_refused(&why);
            wait = Some(REFUSED_WAIT);
        }
    }

    fn shell(&mut self, machine: Stream, holding: Holding) -> Shell<'_> {
        Shell {
            machine,
            holding,
            seat: &mut self.seat,
            wishes: &mut self.wishes,
            log: self.log.clone(),
            tokens: self.tokens.clone(),
            board: Arc::clone(&self.board),
            dialler: self.dialler.clone(),
            rest: self.rest.clone(),
            sockets: Sockets::new(),
            work: FuturesUnordered::new(),
            attempts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            oldest: None,
            told_failed: self.board.refused_log(),
            told_live: false,
            told_degraded: true,
            has_begun_append: false,
        }
    }
}

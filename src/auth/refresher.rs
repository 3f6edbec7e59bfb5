//! The owner of an account's token: carries out what the token machine says, and tells everybody of a new token.
//!
//! It decides nothing but the order of its own steps. A step once begun is finished; only waits hear the stop signal.

use std::{
    future,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Grant, Settings, Token,
    grants::{GrantError, Granted, Grants},
};
use crate::{
    clock,
    protocol::refresh::{self, Failure, Input, Origin, Output, Phase, Refresh, Sharing},
    tasks::Outcome,
    telemetry::{chain, metrics},
};

/// How often secrets in files are looked at, and the life that is left is shown.
const TICK: Duration = Duration::from_secs(1);

/// What handles ask for. A value, not a queue: whoever asks again changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    /// The newest generation that was refused.
    pub(super) refused: u64,
    /// How often an operator wanted a new token.
    pub(super) wishes: u64,
}

/// What handles may know beside the token.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) phase: Phase,
    pub(super) generation: u64,
    pub(super) ends_at: Option<Instant>,
    pub(super) next_at: Option<Instant>,
    pub(super) refreshes: u64,
    pub(super) last_error: Option<String>,
}

/// The ends that handles hold.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) asked: watch::Sender<Asked>,
    pub(super) tokens: watch::Receiver<Option<Token>>,
    pub(super) reports: watch::Receiver<Report>,
}

/// One account's refresher.
#[derive(Debug)]
pub(super) struct Refresher {
    machine: Refresh,
    grants: Grants,
    /// Granted, and waiting for its number.
    granted: Option<Granted>,
    asked: watch::Receiver<Asked>,
    wishes_heard: u64,
    tokens: watch::Sender<Option<Token>>,
    reports: watch::Sender<Report>,
    refreshes: u64,
    last_error: Option<String>,
    metrics: metrics::Account,
    tick: Interval,
}

impl Refresher {
    /// Must be called within a Tokio runtime. Nothing is fetched before [`Refresher::run`].
    pub(super) fn new(settings: &Settings, grants: Grants) -> (Self, Ends) {
        let machine = Refresh::new(settings.refresh());
        let (asked_sender, asked) = watch::channel(Asked::default());
        let (tokens, tokens_receiver) = watch::channel(None);
        let (reports, reports_receiver) = watch::channel(report(&machine, 0, None));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let refresher = Self {
            machine,
            grants,
            granted: None,
            asked,
            wishes_heard: 0,
            tokens,
            reports,
            refreshes: 0,
            last_error: None,
            metrics: metrics::Account::new(&settings.account),
            tick,
        };
        (refresher, Ends { asked: asked_sender, tokens: tokens_receiver, reports: reports_receiver })
    }

    /// Keeps a token until the stop signal.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Outcome {
        self.machine.handle(Input::Start, clock::now());
        loop {
            while let Some(output) = self.machine.poll_output() {
                if self.perform(output, &stop).await.is_break() {
                    return Ok(());
                }
            }
            self.publish();
            let wake = self.machine.poll_timeout();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                alive = self.asked.changed() => match alive {
                    Ok(()) => self.hear(),
                    Err(_) => return forsaken(&stop).await,
                },
                () = sleep_until(wake) => self.machine.handle_timeout(clock::now()),
                _ = self.tick.tick() => self.look_around().await,
            }
        }
    }

    async fn perform(&mut self, output: Output, stop: &CancellationToken) -> ControlFlow<()> {
        match output {
            Output::Fetch => match self.fetch(stop).await {
                Some(answer) => self.take(answer),
                None => return ControlFlow::Break(()),
            },
            Output::Adopt { generation, origin: Origin::Grant } => self.adopt(generation),
            Output::Retry { at, alarm } => self.lament(at, alarm),
            Output::Adopt { origin: Origin::Vault, .. }
            | Output::Look
            | Output::Lock { .. }
            | Output::Renew { .. }
            | Output::Release { .. }
            | Output::Publish { .. } => panic!("a token that is not shared knows no vault"),
        }
        ControlFlow::Continue(())
    }

    /// The answer to one request, or none if the daemon ends first and the request may be dropped.
    async fn fetch(&mut self, stop: &CancellationToken) -> Option<Result<Granted, GrantError>> {
        self.publish();
        let droppable = !self.grants.must_finish();
        let held = self.tokens.borrow().as_ref().map(|token| token.secret.clone());
        let refused = held.filter(|_| self.machine.is_refused());
        let mut answer = Box::pin(self.grants.fetch(refused));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if droppable => return None,
                answer = &mut answer => return Some(answer),
                _ = self.tick.tick() => show_remaining(&self.metrics, &self.machine),
            }
        }
    }

    fn take(&mut self, answer: Result<Granted, GrantError>) {
        let unit = fastrand::f64();
        let input = match answer {
            Ok(granted) => {
                self.metrics.refreshed("granted");
                let lifetime = granted.lifetime.map(|lifetime| lifetime.scheduled);
                self.granted = Some(granted);
                Input::Granted { lifetime, unit }
            }
            Err(error) => {
                let failure = error.verdict();
                self.metrics.refreshed(outcome(failure));
                self.last_error = Some(chain(&error));
                Input::Failed { failure, unit }
            }
        };
        self.machine.handle(input, clock::now());
    }

    fn adopt(&mut self, generation: u64) {
        let Granted { secret, lifetime } = self.granted.take().expect("a token is granted before it is adopted");
        if let Some(lifetime) = lifetime {
            self.metrics.lives(lifetime.scheduled, lifetime.claimed);
        }
        self.refreshes += 1;
        self.last_error = None;
        tracing::info!(
            generation,
            life_secs = lifetime.map(|lifetime| lifetime.scheduled.as_secs_f64()),
            life_from = lifetime.map(|lifetime| lifetime.source.as_str()),
            claimed_secs = lifetime.and_then(|lifetime| lifetime.claimed).map(|claimed| claimed.as_secs_f64()),
            next_secs = self.machine.poll_timeout().map(until),
            "token adopted"
        );
        self.tokens.send_replace(Some(Token { generation, secret }));
        show_remaining(&self.metrics, &self.machine);
    }

    fn lament(&self, at: Instant, alarm: bool) {
        let (error, retry_secs) = (self.last_error.as_deref(), until(at));
        let remaining_secs = self.machine.ends_at().map(until);
        if alarm {
            tracing::error!(error, retry_secs, remaining_secs, "the credentials of the account need an operator");
        } else {
            tracing::warn!(error, retry_secs, remaining_secs, "no new token");
        }
    }

    fn hear(&mut self) {
        let asked = *self.asked.borrow_and_update();
        let now = clock::now();
        self.machine.handle(Input::Refused { generation: asked.refused }, now);
        if self.wishes_heard < asked.wishes {
            self.wishes_heard = asked.wishes;
            self.machine.handle(Input::Wanted, now);
        }
    }

    /// A changed secret is tried out while the token that an older one got still runs.
    async fn look_around(&mut self) {
        show_remaining(&self.metrics, &self.machine);
        if self.grants.have_changed().await {
            self.machine.handle(Input::Wanted, clock::now());
        }
    }

    fn publish(&self) {
        self.reports.send_replace(report(&self.machine, self.refreshes, self.last_error.clone()));
    }
}

impl Settings {
    /// Nobody is bothered by reading a file again, so a static token knows no interval.
    fn refresh(&self) -> refresh::Settings {
        let interval_min = match self.grant {
            Grant::Static { .. } => Duration::ZERO,
            Grant::ClientCredentials(_) | Grant::RefreshToken { .. } => self.refresh_interval_min,
        };
        refresh::Settings {
            buffer: self.refresh_buffer,
            interval_min,
            jitter_max: self.refresh_jitter,
            sharing: Sharing::None,
        }
    }
}

/// Nobody holds a handle, so nobody needs a token; but ending unasked would be a fault.
async fn forsaken(stop: &CancellationToken) -> Outcome {
    stop.cancelled().await;
    Ok(())
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => future::pending().await,
    }
}

fn report(machine: &Refresh, refreshes: u64, last_error: Option<String>) -> Report {
    Report {
        phase: machine.phase(),
        generation: machine.generation(),
        ends_at: machine.ends_at(),
        next_at: machine.next_at(),
        refreshes,
        last_error,
    }
}

fn show_remaining(metrics: &metrics::Account, machine: &Refresh) {
    if let Some(ends_at) = machine.ends_at() {
        metrics.remaining(ends_at.saturating_duration_since(clock::now()));
    }
}

/// Seconds from this moment; 0 for what is past.
pub(super) fn until(at: Instant) -> f64 {
    at.saturating_duration_since(clock::now()).as_secs_f64()
}

/// The metric's word.
fn outcome(failure: Failure) -> &'static str {
    match failure {
        Failure::Throttled(_) => "throttled",
        Failure::Unreachable => "unreachable",
        Failure::Rejected => "rejected",
    }
}

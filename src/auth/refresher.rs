//! The refresher of an account's token. It executes the outputs of the token machine and publishes new tokens.
//!
//! It executes one output at a time. The stop signal interrupts waits, but no step that has begun.

mod handle;
mod vault_steps;

pub(super) use self::handle::{RefresherHandle, seconds_until};

use std::{
    future,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::{
    handle::{RefreshError, RefreshRequests, TokenReport, report},
    vault_steps::{next_hint, renew_lock},
};
use super::{
    Grant, Settings, Token,
    sharing::SharedTokens,
    token_source::{GrantError, GrantedToken, REQUEST_TIMEOUT, TokenSource},
};
use crate::{
    clock,
    model::Secret,
    protocol::refresh::{
        self, GrantFailure, Input, Output, PendingRefresh, Refresh, TokenOrigin, VaultToken, WaitReason,
        usage::TokenUsage,
    },
    tasks::TaskResult,
    telemetry::{chain, metrics},
};

/// Interval of checks for changed secret files and of updates of the remaining lifetime metric.
const TICK: Duration = Duration::from_secs(1);

/// The error text of a Retry-After that another replica received.
const SHARED_PAUSE: &str = "token endpoint sent Retry-After to another replica; all replicas wait";

/// The refresher of one account.
#[derive(Debug)]
pub(super) struct Refresher {
    machine: Refresh,
    token_source: TokenSource,
    shared: Option<SharedTokens>,
    /// A granted token without a generation yet.
    granted: Option<GrantedToken>,
    requests: watch::Receiver<RefreshRequests>,
    operator_requests_seen: u64,
    offers_seen: u64,
    tokens: watch::Sender<Option<Token>>,
    reports: watch::Sender<TokenReport>,
    usage: Arc<Mutex<TokenUsage>>,
    refreshes: u64,
    /// Deadline of the newest token request.
    request_deadline: Option<Instant>,
    /// The wait reason that was logged last.
    logged_wait: Option<WaitReason>,
    last_error: Option<RefreshError>,
    metrics: metrics::AccountMetrics,
    tick: Interval,
}

impl Refresher {
    /// Requires a Tokio runtime. Sends nothing before [`Refresher::run`].
    pub(super) fn new(
        settings: &Settings,
        token_source: TokenSource,
        shared: Option<SharedTokens>,
    ) -> (Self, RefresherHandle) {
        let sharing = if shared.is_some() { refresh::TokenSharing::Vault } else { refresh::TokenSharing::None };
        let machine = Refresh::new(settings.refresh(sharing));
        let (requests_sender, requests) = watch::channel(RefreshRequests::default());
        let (tokens, tokens_receiver) = watch::channel(None);
        let (reports, reports_receiver) = watch::channel(report(&machine, 0, None, None));
        let usage = Arc::<Mutex<TokenUsage>>::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let refresher = Self {
            machine,
            token_source,
            shared,
            granted: None,
            requests,
            operator_requests_seen: 0,
            offers_seen: 0,
            tokens,
            reports,
            usage: Arc::clone(&usage),
            refreshes: 0,
            request_deadline: None,
            logged_wait: None,
            last_error: None,
            metrics: metrics::AccountMetrics::new(&settings.account),
            tick,
        };
        (
            refresher,
            RefresherHandle { requests: requests_sender, tokens: tokens_receiver, reports: reports_receiver, usage },
        )
    }

    /// Keeps the token fresh until the stop signal.
    pub(super) async fn run(mut self, stop: CancellationToken) -> TaskResult {
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
                alive = self.requests.changed() => match alive {
                    Ok(()) => self.on_requests(),
                    Err(_) => return wait_for_stop(&stop).await,
                },
                generation = next_hint(&mut self.shared) => {
                    self.machine.handle(Input::VaultNotified { generation }, clock::now());
                }
                () = sleep_until(wake) => self.machine.handle_timeout(clock::now()),
                _ = self.tick.tick() => self.check_secrets().await,
            }
        }
    }

    async fn perform(&mut self, output: Output, stop: &CancellationToken) -> ControlFlow<()> {
        match output {
            Output::Fetch => match self.fetch(stop).await {
                Some(answer) => self.on_grant_result(answer),
                None => return ControlFlow::Break(()),
            },
            Output::Adopt { generation, origin } => {
                self.adopt(generation, origin);
                if origin == TokenOrigin::Vault {
                    self.load_shared_refresh_token().await;
                }
            }
            Output::Retry { at, alarm } => self.log_failure(at, alarm),
            Output::PauseRequests { at } => self.on_shared_pause(at),
            Output::ReadVault => self.read_vault().await,
            Output::Lock { ttl } => self.lock(ttl).await,
            Output::Renew { ttl } => self.shared().renew(ttl).await,
            Output::Release { pause } => self.shared().release(pause).await,
            Output::Publish { generation, lifetime, remaining } => {
                self.publish_token(VaultToken { generation, lifetime, remaining }).await;
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends one token request. None if the process stops first and the request may be dropped.
    async fn fetch(&mut self, stop: &CancellationToken) -> Option<Result<GrantedToken, GrantError>> {
        self.request_deadline = Some(clock::now() + REQUEST_TIMEOUT);
        self.publish();
        self.load_shared_refresh_token().await;
        let answer = self.request_token(stop).await?;
        self.share_refresh_token().await;
        Some(answer)
    }

    async fn request_token(&mut self, stop: &CancellationToken) -> Option<Result<GrantedToken, GrantError>> {
        let droppable = !self.token_source.must_finish();
        let current = self.tokens.borrow().as_ref().map(|token| token.secret.clone());
        let refused = current.filter(|_| self.machine.is_refused());
        let Self { token_source, machine, shared, metrics, tick, .. } = self;
        let mut answer = Box::pin(token_source.fetch(refused));
        loop {
            let wake = machine.poll_timeout();
            tokio::select! {
                biased;
                () = stop.cancelled(), if droppable => break,
                answer = &mut answer => return Some(answer),
                () = sleep_until(wake) => renew_lock(machine, shared.as_mut()).await,
                _ = tick.tick() => show_remaining(metrics, machine),
            }
        }
        drop(answer);
        if let Some(shared) = shared {
            shared.release(None).await;
        }
        None
    }

    fn on_grant_result(&mut self, answer: Result<GrantedToken, GrantError>) {
        let unit = fastrand::f64();
        let input = match answer {
            Ok(granted) => {
                self.metrics.refreshed("granted");
                let lifetime = granted.lifetime.map(|lifetime| lifetime.scheduled);
                let repeated = self.is_refused(&granted.secret);
                self.granted = Some(granted);
                Input::Granted { lifetime, repeated, unit }
            }
            Err(error) => {
                let failure = error.failure();
                self.metrics.refreshed(outcome_label(failure));
                self.last_error = Some(RefreshError { text: chain(&error), at: clock::wall() });
                Input::Failed { failure, unit }
            }
        };
        self.machine.handle(input, clock::now());
    }

    /// Whether this is the rejected token.
    fn is_refused(&self, secret: &Secret) -> bool {
        self.machine.is_refused() && self.tokens.borrow().as_ref().is_some_and(|token| token.secret == *secret)
    }

    fn adopt(&mut self, generation: u64, origin: TokenOrigin) {
        let granted = self.granted.take();
        let secret = match origin {
            TokenOrigin::Grant => {
                self.adopt_granted(generation, granted.expect("a token is granted before it is adopted"))
            }
            TokenOrigin::Vault => self.adopt_found(generation),
        };
        self.last_error = None;
        self.usage.lock().on_token(generation, clock::now());
        self.publish();
        self.tokens.send_replace(Some(Token { generation, secret }));
        show_remaining(&self.metrics, &self.machine);
    }

    fn adopt_granted(&mut self, generation: u64, granted: GrantedToken) -> Secret {
        let GrantedToken { secret, lifetime } = granted;
        if let Some(lifetime) = lifetime {
            self.metrics.set_lifetime(lifetime.scheduled, lifetime.claimed);
        }
        self.refreshes += 1;
        tracing::info!(
            generation,
            lifetime_secs = lifetime.map(|lifetime| lifetime.scheduled.as_secs_f64()),
            lifetime_from = lifetime.map(|lifetime| lifetime.source.as_str()),
            claimed_secs = lifetime.and_then(|lifetime| lifetime.claimed).map(|claimed| claimed.as_secs_f64()),
            next_secs = self.machine.next_at().map(seconds_until),
            "token adopted"
        );
        secret
    }

    fn log_failure(&self, at: Instant, alarm: bool) {
        let (error, retry_secs) = (self.last_error.as_ref().map(|error| &*error.text), seconds_until(at));
        let remaining_secs = self.machine.expires_at().map(seconds_until);
        if alarm {
            tracing::error!(
                error,
                retry_secs,
                remaining_secs,
                "credentials rejected; fix the client id, secret or refresh token of the account"
            );
        } else {
            tracing::warn!(error, retry_secs, remaining_secs, "token refresh failed, will retry");
        }
    }

    /// Applies a Retry-After that another replica received.
    fn on_shared_pause(&mut self, at: Instant) {
        let retry_secs = seconds_until(at);
        tracing::warn!(retry_secs, "{SHARED_PAUSE}");
        self.last_error = Some(RefreshError { text: SHARED_PAUSE.to_owned(), at: clock::wall() });
    }

    fn on_requests(&mut self) {
        let requests = *self.requests.borrow_and_update();
        let now = clock::now();
        let (generation, proven) = requests.refused;
        if requests.cleared < generation {
            self.on_refusal(generation, proven, now);
        } else {
            self.machine.handle(Input::RefusalCleared { generation: requests.cleared }, now);
        }
        if self.offers_seen < requests.offers {
            self.offers_seen = requests.offers;
            self.offer_again();
        }
        if self.operator_requests_seen < requests.operator_requests {
            self.operator_requests_seen = requests.operator_requests;
            self.machine.handle(Input::RefreshRequested, now);
        }
    }

    fn on_refusal(&mut self, generation: u64, proven: bool, now: Instant) {
        let (before, was_refused) = (self.machine.degraded_until(), self.machine.is_refused());
        self.machine.handle(Input::Refused { generation, proven }, now);
        let after = self.machine.degraded_until();
        if self.machine.is_refused() && !was_refused {
            self.metrics.refused();
        }
        if after != before && before.is_none_or(|until| until <= now) && after.is_some_and(|until| now < until) {
            let (refusals, within) = (refresh::REFUSALS_MAX, refresh::REFUSALS_WINDOW);
            tracing::error!(refusals, ?within, "platform repeatedly rejects tokens of the account");
        }
    }

    /// Offers the token again to streams for which it was rejected, unless it is unusable: then they wait for the next.
    fn offer_again(&self) {
        if self.machine.is_retryable() {
            self.tokens.send_modify(|_| ());
        }
    }

    /// Refreshes when a secret file has changed, while the current token is still valid.
    async fn check_secrets(&mut self) {
        show_remaining(&self.metrics, &self.machine);
        if self.token_source.have_changed().await {
            self.machine.handle(Input::RefreshRequested, clock::now());
        }
    }

    fn publish(&mut self) {
        let report = report(&self.machine, self.refreshes, self.request_deadline, self.last_error.clone());
        self.log_wait(report.waiting);
        self.reports.send_replace(report);
    }

    /// Logs each wait once, when it begins. Waits for the vault are short and are not logged.
    fn log_wait(&mut self, waiting: Option<PendingRefresh>) {
        let reason = waiting.map(|waiting| waiting.reason).filter(|reason| *reason != WaitReason::Vault);
        if std::mem::replace(&mut self.logged_wait, reason) == reason {
            return;
        }
        if let (Some(reason), Some(waiting)) = (reason, waiting) {
            let until_secs = waiting.until.map(seconds_until);
            tracing::info!(waiting_for = reason.as_str(), until_secs, "token refresh pending");
        }
    }
}

impl Settings {
    /// The settings of the token machine. A static token is a file read and has no minimum interval.
    fn refresh(&self, sharing: refresh::TokenSharing) -> refresh::Settings {
        let interval_min = match self.grant {
            Grant::Static { .. } => Duration::ZERO,
            Grant::ClientCredentials(_) | Grant::RefreshToken { .. } => self.refresh_interval_min,
        };
        refresh::Settings { buffer: self.refresh_buffer, interval_min, jitter_max: self.refresh_jitter, sharing }
    }
}

/// Waits for the stop signal after all handles were dropped. A task that ends earlier counts as a fault.
async fn wait_for_stop(stop: &CancellationToken) -> TaskResult {
    stop.cancelled().await;
    Ok(())
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => future::pending().await,
    }
}

fn show_remaining(metrics: &metrics::AccountMetrics, machine: &Refresh) {
    if let Some(ends_at) = machine.expires_at() {
        metrics.set_remaining(ends_at.saturating_duration_since(clock::now()));
    }
}

/// The metric label of a failure.
fn outcome_label(failure: GrantFailure) -> &'static str {
    match failure {
        GrantFailure::Throttled(_) => "throttled",
        GrantFailure::Unreachable => "unreachable",
        GrantFailure::Rejected => "rejected",
    }
}

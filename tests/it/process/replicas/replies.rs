//! Redis answers with errors, or hangs up within a reply, while two relays append, renew and follow: each waits, shows
//! why, and goes on when the errors end.

use std::time::Duration;

use trunkline::{
    clock,
    simulator::{Dialect, Settings},
};

use super::{goes_on, one_owns};
use crate::{
    harness::{Commands, ERRORS, Redis, Reply, RespFault, RespProxy, error_code},
    process::{
        child::{PATIENCE, eventually},
        log::{assert_whole, pages},
        relay::Relay,
        site::Site,
    },
};

const EVENTS_A_SECOND: u64 = 100;

/// Two relays that reach one server through one proxy.
struct Pair {
    _server: Redis,
    proxy: RespProxy,
    site: Site,
    relays: [Relay; 2],
}

impl Pair {
    async fn start(settings: Settings) -> Self {
        let server = Redis::durable();
        let proxy = RespProxy::to(server.port()).await;
        let site = Site::start_with(settings, &[]).await;
        site.use_redis(&proxy.url());
        let relays = [Relay::live(&site).await, Relay::live(&site).await];
        Self { _server: server, proxy, site, relays }
    }

    /// While this fault lasts both are not ready for this reason; when it has ended both show what comes.
    async fn endures(&mut self, fault: RespFault, reason: &str) {
        let replaced = self.proxy.replaced();
        self.proxy.set(fault);
        for relay in &self.relays {
            is_not_ready(relay, reason).await;
        }
        let is_injected = async || (self.proxy.replaced() > replaced).then_some(());
        eventually("replies are replaced", PATIENCE, is_injected).await;
        self.proxy.clear();
        for relay in &mut self.relays {
            goes_on(&self.site, relay, clock::now()).await;
            relay.goes_live().await;
            assert!(relay.child.has_ended().is_none(), "{reason}: {}", relay.child.told());
        }
    }

    async fn ends_whole(&self, last_sent: u64) {
        for relay in &self.relays {
            relay.holds(last_sent).await;
            assert_whole(&pages(&relay.consumers).await, last_sent);
        }
        one_owns(&self.relays).await;
    }
}

async fn is_not_ready(relay: &Relay, reason: &str) {
    eventually(&format!("not ready: {reason}"), PATIENCE, async || {
        let (status, shown) = relay.ready().await?;
        (status == 503 && shown["checks"].to_string().contains(reason)).then_some(())
    })
    .await;
}

/// All of these, one after the other, against the same two processes and one log.
async fn each_is_endured(commands: &[Commands]) {
    let mut pair = Pair::start(Settings::default()).await;
    let talk = pair.site.talk(EVENTS_A_SECOND);
    let sockets = pair.site.platform.tally().sockets(Dialect::Sequenced);
    for (commands, error) in ERRORS.iter().filter(|(of, _)| commands.contains(of)) {
        pair.endures(RespFault { commands: *commands, reply: Reply::Error(error) }, error_code(error)).await;
    }
    let after = pair.site.platform.tally().sockets(Dialect::Sequenced);
    assert_eq!((after.open, after.total), (1, sockets.total), "the socket stays");
    pair.ends_whole(talk.hush().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_all_commands_delay_appends_and_lose_nothing() {
    each_is_endured(&[Commands::All]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_commands_with_keys_delay_appends_and_lose_nothing() {
    each_is_endured(&[Commands::Keyed]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_writes_delay_appends_and_lose_nothing() {
    each_is_endured(&[Commands::Writes]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_close_within_a_reply_lose_and_double_nothing() {
    let mut pair = Pair::start(Settings::default()).await;
    let talk = pair.site.talk(EVENTS_A_SECOND);
    for commands in [Commands::All, Commands::Writes, Commands::Every, Commands::All] {
        pair.endures(RespFault { commands, reply: Reply::Half }, "the membership of this replica is not renewed").await;
    }
    pair.ends_whole(talk.hush().await).await;
}

/// Short enough for a renewal to fall into each fault.
const TOKEN_LIFE: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_while_redis_answers_with_errors_and_no_session_ends() {
    let mut pair = Pair::start(Settings { token_ttl: TOKEN_LIFE, ..Settings::default() }).await;
    let talk = pair.site.talk(EVENTS_A_SECOND);
    for (commands, reply, reason) in [
        (Commands::All, Reply::Error(ERRORS[0].1), "LOADING"),
        (Commands::Writes, Reply::Error(ERRORS[10].1), "READONLY"),
        (Commands::Keyed, Reply::Half, "not renewed"),
    ] {
        let granted = pair.site.platform.tally().grants_total();
        pair.proxy.set(RespFault { commands, reply });
        let renewed = async || (pair.site.platform.tally().grants_total() > granted).then_some(());
        eventually("a token is renewed", PATIENCE, renewed).await;
        pair.endures(RespFault { commands, reply }, reason).await;
    }
    assert_eq!(
        pair.site.platform.tally().sockets(Dialect::Sequenced).deserted,
        0,
        "a session was live at every instant"
    );
    pair.ends_whole(talk.hush().await).await;
}

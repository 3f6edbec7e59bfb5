//! Redis replies with errors or closes within a reply while two relays run: each waits with a reason and resumes when the
//! errors end.

use std::time::Duration;

use trunkline::{
    clock,
    simulator::{Settings, SocketDialect},
};

use super::{one_owns, wait_for_progress};
use crate::{
    harness::{CommandMatch, ERRORS, FaultReply, RedisServer, RespFault, RespProxy, error_code},
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_complete, pages},
        relay::RelayProcess,
        site::Site,
    },
};

const EVENTS_A_SECOND: u64 = 100;

/// Two relays on one server behind one proxy.
struct FaultyRedisPair {
    _server: RedisServer,
    proxy: RespProxy,
    site: Site,
    relays: [RelayProcess; 2],
}

impl FaultyRedisPair {
    async fn start(settings: Settings) -> Self {
        let server = RedisServer::durable();
        let proxy = RespProxy::to(server.port()).await;
        let site = Site::start_with(settings, &[]).await;
        site.use_redis(&proxy.url());
        let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
        Self { _server: server, proxy, site, relays }
    }

    /// Checks that both relays are not ready for this reason during the fault, and serve new events after it.
    async fn survives(&mut self, fault: RespFault, reason: &str) {
        let replaced = self.proxy.replaced();
        self.proxy.set(fault);
        for relay in &self.relays {
            is_not_ready(relay, reason).await;
        }
        let is_injected = async || (self.proxy.replaced() > replaced).then_some(());
        eventually("replies are replaced", WAIT_MAX, is_injected).await;
        self.proxy.clear();
        for relay in &mut self.relays {
            wait_for_progress(&self.site, relay, clock::now()).await;
            relay.wait_until_live().await;
            assert!(relay.child.has_ended().is_none(), "{reason}: {}", relay.child.printed_output());
        }
    }

    async fn assert_complete_logs(&self, last_sent: u64) {
        for relay in &self.relays {
            relay.wait_for_number(last_sent).await;
            assert_complete(&pages(&relay.consumers).await, last_sent);
        }
        one_owns(&self.relays).await;
    }
}

async fn is_not_ready(relay: &RelayProcess, reason: &str) {
    eventually(&format!("not ready: {reason}"), WAIT_MAX, async || {
        let (status, shown) = relay.ready().await?;
        (status == 503 && shown["checks"].to_string().contains(reason)).then_some(())
    })
    .await;
}

/// Injects all errors of these kinds one after the other into the same two relays.
async fn survives_each(commands: &[CommandMatch]) {
    let mut pair = FaultyRedisPair::start(Settings::default()).await;
    let traffic = pair.site.start_traffic(EVENTS_A_SECOND);
    let sockets = pair.site.platform.counters().sockets(SocketDialect::Sequenced);
    for (commands, error) in ERRORS.iter().filter(|(of, _)| commands.contains(of)) {
        pair.survives(RespFault { commands: *commands, reply: FaultReply::Error(error) }, error_code(error)).await;
    }
    let after = pair.site.platform.counters().sockets(SocketDialect::Sequenced);
    assert_eq!((after.open, after.total), (1, sockets.total), "the socket stays");
    pair.assert_complete_logs(traffic.stop().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_all_commands_delay_appends_and_lose_nothing() {
    survives_each(&[CommandMatch::All]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_commands_with_keys_delay_appends_and_lose_nothing() {
    survives_each(&[CommandMatch::Keyed]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_to_writes_delay_appends_and_lose_nothing() {
    survives_each(&[CommandMatch::Writes]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_close_within_a_reply_lose_and_duplicate_nothing() {
    let mut pair = FaultyRedisPair::start(Settings::default()).await;
    let traffic = pair.site.start_traffic(EVENTS_A_SECOND);
    for commands in [CommandMatch::All, CommandMatch::Writes, CommandMatch::Every, CommandMatch::All] {
        pair.survives(RespFault { commands, reply: FaultReply::Half }, "the membership renewal of this replica fails")
            .await;
    }
    pair.assert_complete_logs(traffic.stop().await).await;
}

/// Short enough that each fault covers a renewal.
const TOKEN_LIFETIME: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_while_redis_answers_with_errors_and_no_session_ends() {
    let mut pair = FaultyRedisPair::start(Settings { token_ttl: TOKEN_LIFETIME, ..Settings::default() }).await;
    let traffic = pair.site.start_traffic(EVENTS_A_SECOND);
    for (commands, reply, reason) in [
        (CommandMatch::All, FaultReply::Error(ERRORS[0].1), "LOADING"),
        (CommandMatch::Writes, FaultReply::Error(ERRORS[10].1), "READONLY"),
        (CommandMatch::Keyed, FaultReply::Half, "membership renewal"),
    ] {
        let granted = pair.site.platform.counters().grants_total();
        pair.proxy.set(RespFault { commands, reply });
        let renewed = async || (pair.site.platform.counters().grants_total() > granted).then_some(());
        eventually("a token is renewed", WAIT_MAX, renewed).await;
        pair.survives(RespFault { commands, reply }, reason).await;
    }
    assert_eq!(
        pair.site.platform.counters().sockets(SocketDialect::Sequenced).deserted,
        0,
        "a session was live at every moment"
    );
    pair.assert_complete_logs(traffic.stop().await).await;
}

//! A TLS platform that is reachable only through an HTTP proxy: all connections use `CONNECT`, and errors name the proxy.

use std::fs;

use trunkline::simulator::PlatformFault;

use super::{
    child::{WAIT_MAX, eventually},
    log::pages,
    relay::RelayProcess,
    site::{STREAM, Site},
    tls::{TlsTerminator, make_certificates},
};
use crate::harness::{ForeignHost, ForwardProxy, SilentPlatform};

const STREAM_PATH: &str = "api/v2/analytics/conversations/summary/stream";
const SNAPSHOT_PATH: &str = "api/v2/analytics/conversations/summary";

/// The configuration without its accounts and streams.
fn head(site: &Site) -> String {
    let mut text = fs::read_to_string(&site.config).unwrap();
    text.truncate(text.find("[accounts.").unwrap());
    text
}

fn account(site: &Site, name: &str, token_url: &str, proxy: &str) -> String {
    let folder = site.folder.path().display();
    format!(
        "[accounts.{name}]\nplatform = \"genesys-cloud\"\ntoken_url = \"{token_url}\"\n\
         api_url = \"https://platform.test\"\nproxy = \"{proxy}\"\n\
         client_id = {{ file = \"{folder}/client-id\" }}\nclient_secret = {{ file = \"{folder}/client-secret\" }}\n\
         refresh_jitter = \"0s\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_calls_and_sockets_of_a_platform_behind_tls_go_through_a_connect_proxy() {
    trunkline::app::install_crypto();
    let site = Site::start().await;
    let folder = site.folder.path().to_owned();
    make_certificates(&folder);
    let platform = TlsTerminator::start(&folder, "named", site.platform.address()).await;
    let proxy = ForwardProxy::to(platform.address()).await;
    let host = "platform.test:8443";
    let token_url = format!("https://{host}/oauth/token");
    let stream = format!(
        "[streams.{STREAM}]\naccount = \"demo\"\nconnector = \"genesys-sequenced\"\nurl = \"wss://{host}/{STREAM_PATH}\"\n\
         snapshot_url = \"https://{host}/{SNAPSHOT_PATH}\"\n"
    );
    fs::write(&site.config, head(&site) + &account(&site, "demo", &token_url, &proxy.url()) + &stream).unwrap();
    let authority = folder.join("known.pem").display().to_string();
    let relay = RelayProcess::start_with(&site, &[("SSL_CERT_FILE", &authority)]).await;
    relay.wait_until_live().await;
    site.platform.emit(2);
    relay.wait_for_number(2).await;
    let before = proxy.requests().len();
    site.platform.inject(PlatformFault::Jump { n: 5 });
    site.platform.emit(1);
    eventually("the snapshot was requested", WAIT_MAX, async || {
        pages(&relay.consumers).await.iter().any(|entry| entry.kind == "trunkline.snapshot.v1").then_some(())
    })
    .await;
    let requests = proxy.requests();
    assert!(before >= 2 && requests.len() > before, "token, socket and call: {requests:?}");
    assert!(requests.iter().all(|request| request.starts_with(&format!("CONNECT {host} "))), "{requests:?}");
    assert_eq!(platform.attempts(), requests.len() as u64, "nothing else reaches the platform");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_or_hangs_is_reported_by_tokens_calls_and_sockets() {
    let site = Site::start().await;
    let good = format!("http://{}/oauth/token", site.platform.address());
    let refuses = ForeignHost::start("HTTP/1.1 407 Proxy Authentication Required").await;
    let fails = ForeignHost::start("HTTP/1.1 502 Bad Gateway").await;
    let hangs = SilentPlatform::start().await;
    let (mut text, mut expected) = (head(&site), Vec::new());
    for (name, address) in [("refuses", refuses.address()), ("fails", fails.address()), ("hangs", hangs.address())] {
        let proxy = format!("http://{address}");
        text.push_str(&account(&site, &format!("{name}-token"), "https://platform.test/oauth/token", &proxy));
        text.push_str(&account(&site, name, &good, &proxy));
        text.push_str(&format!(
            "[streams.{name}-socket]\naccount = \"{name}\"\nconnector = \"genesys-sequenced\"\n\
             url = \"wss://platform.test/stream\"\n\
             [streams.{name}-call]\naccount = \"{name}\"\nconnector = \"genesys-notifications\"\n\
             topics = [\"v2.users.*.presence\"]\n"
        ));
        for (list, key, suffix) in
            [("accounts", "account", "token"), ("streams", "stream", "socket"), ("streams", "stream", "call")]
        {
            expected.push((list, key, format!("{name}-{suffix}"), proxy.clone()));
        }
    }
    fs::write(&site.config, text).unwrap();
    let relay = RelayProcess::start(&site).await;
    for (list, key, name, proxy) in expected {
        eventually(&format!("the error of {name} names {proxy}"), WAIT_MAX, async || {
            let status = relay.status().await;
            let one = status[list].as_array()?.iter().find(|one| one[key] == name.as_str())?.clone();
            one["last_error"].as_str().filter(|error| error.contains(&proxy)).map(drop)
        })
        .await;
    }
}

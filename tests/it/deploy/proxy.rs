//! The proxy of a pod: a real nginx with the configuration of the ConfigMap, in front of a relay.

use std::{fs, path::Path, process::Command};

use super::files::{document, documents, free, strings};
use crate::process::{
    RelayProcess, STREAM, Site,
    child::{Child, WAIT_MAX, eventually},
    client,
};

/// The placeholder of the Secret.
const BEARER: &str = "Bearer CHANGE-ME";

struct NginxProxy {
    consumers: String,
    operators: String,
    _server: Child,
}

impl NginxProxy {
    /// Starts nginx as in a pod, with other ports and folders, and as one process: workers survive a killed master.
    async fn in_front_of(relay: &RelayProcess, folder: &Path) -> Self {
        let [consumers, operators] = free::<2>().map(|address| address.to_string());
        let place = folder.to_str().unwrap();
        let config = document_value("deploy/kubernetes/configmap.yaml", "data", "nginx.conf")
            .replace("127.0.0.1:8080", relay.consumers.trim_start_matches("http://"))
            .replace("127.0.0.1:9090", relay.admin.trim_start_matches("http://"))
            .replace("daemon off;", "daemon off; master_process off;")
            .replace("listen 8081", &format!("listen {consumers}"))
            .replace("listen 9091", &format!("listen {operators}"))
            .replace("/tmp/", &format!("{place}/"))
            .replace("/etc/proxy-secret", place);
        fs::write(folder.join("nginx.conf"), config).unwrap();
        fs::write(
            folder.join("tokens.conf"),
            document_value("deploy/kubernetes/secret.yaml", "stringData", "tokens.conf"),
        )
        .unwrap();
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.expect("nginx is not installed; sudo apt-get install -y nginx-light"));
        command.args(arguments().iter().map(|word| word.replace("/etc/proxy", place)));
        let server = Child::spawn(folder, command);
        let proxy = Self {
            consumers: format!("http://{consumers}"),
            operators: format!("http://{operators}"),
            _server: server,
        };
        eventually("the proxy answers", WAIT_MAX, async || {
            let answer = client().get(format!("{}/proxyz", proxy.operators)).send().await.ok()?;
            (answer.status() == 204).then_some(())
        })
        .await;
        proxy
    }
}

/// The arguments of `nginx` in the pod's command.
fn arguments() -> Vec<String> {
    let pod = document("deploy/kubernetes/deployment.yaml")["spec"]["template"]["spec"].take();
    let command = strings(&pod["initContainers"][0]["command"]);
    assert_eq!(command[0], "nginx");
    command[1..].iter().map(|&word| word.to_owned()).collect()
}

/// The value of a key in the document that has it.
fn document_value(file: &str, table: &str, key: &str) -> String {
    let found = documents(file).into_iter().find_map(|document| Some(document[table][key].as_str()?.to_owned()));
    found.unwrap_or_else(|| panic!("{file}: {table} has no {key}"))
}

#[tokio::test]
async fn consumers_need_a_token_and_probes_only_a_path() {
    let site = Site::start().await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(3);
    relay.wait_for_number(3).await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = NginxProxy::in_front_of(&relay, folder.path()).await;
    let asked = async |url: String, bearer: &str| {
        let answer = client().get(url).header("authorization", bearer).send().await.unwrap();
        answer.status().as_u16()
    };

    let events = format!("{}/v1/streams/{STREAM}/events?from=first", proxy.consumers);
    for (bearer, status) in [(BEARER, 200), ("Bearer change-me", 401), ("CHANGE-ME", 401), ("", 401)] {
        assert_eq!(asked(events.clone(), bearer).await, status, "{bearer:?}");
    }
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz?streams=all", 200),
        ("/metrics", 200),
        ("/admin/v1/status", 404),
        ("/admin/v1/streams/calls/rotate", 404),
        ("/healthz/../admin/v1/status", 404),
        ("/", 404),
    ] {
        assert_eq!(asked(format!("{}{path}", proxy.operators), "").await, status, "{path}");
    }
    streams_without_delay(&site, &proxy, &events).await;
}

/// The proxy forwards an event immediately and does not buffer it.
async fn streams_without_delay(site: &Site, proxy: &NginxProxy, events: &str) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-N", "--fail", "-H", "Accept: text/event-stream", "-H"]);
    curl.arg(format!("Authorization: {BEARER}")).arg(events);
    let mut consumer = Child::spawn(site.folder.path(), curl);
    consumer.wait_for_output("\"sequence\":\"3\"").await;
    site.platform.emit(1);
    consumer.wait_for_output("\"sequence\":\"4\"").await;

    let mut upgrade = Command::new("curl");
    upgrade.args(["-sS", "-i", "-N", "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H"]);
    upgrade.args(["Sec-WebSocket-Version: 13", "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "-H"]);
    upgrade.arg(format!("Authorization: {BEARER}")).arg(format!("{}/v1/streams/{STREAM}/events", proxy.consumers));
    let mut socket = Child::spawn(site.folder.path(), upgrade);
    socket.wait_for_output("101 Switching Protocols").await;
}

//! The Kubernetes manifests: mistakes that a cluster would report only at run time.

use std::{collections::BTreeSet, fmt::Write, fs};

use serde_json::Value;

use super::files::{assert_good, document, documents, drain_secs_max, path, strings, text};

/// The daemon's default ports, and the ports of the proxy in front of them.
const CONSUMERS: (u64, u64) = (8080, 8081);
const OPERATORS: (u64, u64) = (9090, 9091);
/// The image's user.
const USER: u64 = 65532;
/// Reserve in addition to the longest drain and the pause before it.
const SPARE_SECS: u64 = 10;

/// The files of the kustomization.
fn files() -> Vec<String> {
    let kustomization = document("deploy/kubernetes/kustomization.yaml");
    strings(&kustomization["resources"]).into_iter().map(|file| format!("deploy/kubernetes/{file}")).collect()
}

fn manifests() -> Vec<Value> {
    files().iter().flat_map(|file| documents(file)).collect()
}

/// The manifest of a kind and name.
fn manifest(kind: &str, name: &str) -> Value {
    let found = manifests().into_iter().find(|m| m["kind"] == kind && m["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn pod() -> Value {
    manifest("Deployment", "trunkline")["spec"]["template"]["spec"].take()
}

/// The containers of the daemon and the proxy.
fn containers() -> Vec<Value> {
    let pod = pod();
    let all = [&pod["initContainers"], &pod["containers"]].into_iter().flat_map(|list| list.as_array().unwrap());
    all.cloned().collect()
}

fn container(name: &str) -> Value {
    containers().into_iter().find(|container| container["name"] == name).unwrap()
}

#[test]
fn the_kustomization_names_every_file_and_each_belongs_to_the_namespace() {
    let named: BTreeSet<String> = files().into_iter().collect();
    let lying = fs::read_dir(path("deploy/kubernetes")).unwrap().map(|entry| entry.unwrap().file_name());
    let lying = lying.map(|name| format!("deploy/kubernetes/{}", name.to_string_lossy()));
    let lying = lying.filter(|name| name.ends_with(".yaml") && !name.ends_with("/kustomization.yaml"));
    assert_eq!(named, lying.collect());
    for manifest in manifests() {
        let (kind, namespace) = (manifest["kind"].as_str().unwrap(), &manifest["metadata"]["namespace"]);
        assert!(kind == "Namespace" || namespace == "trunkline", "{manifest}");
    }
    let images = document("deploy/kubernetes/kustomization.yaml")["images"].take();
    assert_eq!(images[0]["name"], container("trunkline")["image"]);
    assert_eq!(images[0]["newTag"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn pods_stay_within_the_restricted_profile_and_write_only_to_folders_of_their_own() {
    let (pod, namespace) = (pod(), manifest("Namespace", "trunkline"));
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let security = &pod["securityContext"];
    assert_eq!(
        (&security["runAsNonRoot"], &security["seccompProfile"]["type"]),
        (&true.into(), &"RuntimeDefault".into())
    );
    assert_eq!([&security["runAsUser"], &security["runAsGroup"], &security["fsGroup"]], [&Value::from(USER); 3]);
    assert!(text("Dockerfile").contains(&format!("\nUSER {USER}:{USER}\n")));
    assert_eq!(pod["automountServiceAccountToken"], false);
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(pod[key].is_null());
    }
    let scratch: Vec<&str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|volume| volume["emptyDir"].is_object())
        .map(|volume| volume["name"].as_str().unwrap())
        .collect();
    for container in containers() {
        let security = &container["securityContext"];
        assert_eq!(
            (&security["allowPrivilegeEscalation"], &security["readOnlyRootFilesystem"]),
            (&false.into(), &true.into())
        );
        assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"]);
        assert!(security["capabilities"]["add"].is_null());
        for mount in container["volumeMounts"].as_array().unwrap() {
            let own = scratch.contains(&mount["name"].as_str().unwrap());
            assert!(own || mount["readOnly"] == true, "{mount}");
        }
        let resources = &container["resources"];
        assert!(resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string());
        assert!(resources["limits"]["memory"].is_string(), "memory is bounded");
    }
}

#[test]
fn liveness_checks_the_process_and_readiness_checks_the_listeners() {
    let (daemon, proxy) = (container("trunkline"), container("proxy"));
    let asks = |container: &Value, probe: &str| {
        let get = &container[probe]["httpGet"];
        (get["path"].as_str().unwrap().to_owned(), get["port"].as_u64().unwrap())
    };
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(asks(&daemon, probe), ("/healthz".to_owned(), OPERATORS.1));
        assert_eq!(
            asks(&proxy, probe),
            ("/proxyz".to_owned(), OPERATORS.1),
            "the proxy's probe does not depend on the daemon"
        );
    }
    assert_eq!(asks(&daemon, "readinessProbe"), ("/readyz".to_owned(), OPERATORS.1));
    let probe_time = |container: &Value| {
        let probe = &container["livenessProbe"];
        probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap()
    };
    assert!(probe_time(&daemon) > probe_time(&proxy), "the proxy restarts before the daemon's probe fails");
    assert_eq!(proxy["restartPolicy"], "Always", "a sidecar ends after the daemon");
}

#[test]
fn the_termination_grace_period_covers_the_longest_drain() {
    let daemon = container("trunkline");
    let pause = daemon["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= pause + drain_secs_max() + SPARE_SECS, "{grace}");
    let readiness = &daemon["readinessProbe"];
    let unready_after = readiness["periodSeconds"].as_u64().unwrap() * readiness["failureThreshold"].as_u64().unwrap();
    assert!(pause >= unready_after);
}

#[test]
fn replicas_are_spread_and_replaced_one_at_a_time() {
    let deployment = manifest("Deployment", "trunkline");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let update = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!((&update["maxUnavailable"], &update["maxSurge"]), (&0.into(), &1.into()));
    assert_eq!(deployment["spec"]["minReadySeconds"], 10);
    let pod = pod();
    let spreads = pod["topologySpreadConstraints"].as_array().unwrap();
    for spread in spreads {
        assert_eq!(
            strings(&spread["matchLabelKeys"]),
            ["pod-template-hash"],
            "the pods of one version are spread among themselves"
        );
    }
    let keys: Vec<_> = spreads.iter().filter_map(|spread| spread["topologyKey"].as_str()).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    assert_eq!(manifest("PodDisruptionBudget", "trunkline")["spec"]["maxUnavailable"], 1);
}

#[test]
fn selectors_match_the_pods_and_references_resolve() {
    let deployment = manifest("Deployment", "trunkline");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let services =
        ["trunkline", "trunkline-operators"].map(|name| manifest("Service", name)["spec"]["selector"].take());
    let spreads = pod()["topologySpreadConstraints"].take();
    let spreads = spreads.as_array().unwrap().iter().map(|spread| spread["labelSelector"]["matchLabels"].clone());
    let others = [
        deployment["spec"]["selector"]["matchLabels"].clone(),
        manifest("PodDisruptionBudget", "trunkline")["spec"]["selector"]["matchLabels"].take(),
        manifest("NetworkPolicy", "trunkline")["spec"]["podSelector"]["matchLabels"].take(),
    ];
    for selector in services.into_iter().chain(spreads).chain(others) {
        assert_eq!(selector, *labels);
    }

    let pod = pod();
    let volumes = pod["volumes"].as_array().unwrap();
    for volume in volumes {
        if let Some(name) = volume["configMap"]["name"].as_str() {
            let held = manifest("ConfigMap", name);
            for item in volume["configMap"]["items"].as_array().unwrap() {
                assert!(held["data"][item["key"].as_str().unwrap()].is_string(), "{item}");
            }
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            manifest("Secret", name);
        } else {
            assert!(volume["emptyDir"].is_object(), "{volume}");
        }
    }
    for container in containers() {
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
        }
    }
    manifest("Secret", container("trunkline")["envFrom"][0]["secretRef"]["name"].as_str().unwrap());
}

#[test]
fn every_port_leads_to_a_listener() {
    let config = manifest("ConfigMap", "trunkline")["data"]["nginx.conf"].take();
    let config = config.as_str().unwrap();
    for (inner, outer) in [CONSUMERS, OPERATORS] {
        let (_, server) = config.split_once(&format!("listen {outer};")).unwrap();
        let server = server.split("server {").next().unwrap();
        let passes = server.matches("proxy_pass").count();
        assert!(passes > 0 && server.matches(&format!("proxy_pass http://127.0.0.1:{inner};")).count() == passes);
    }
    let proxy = container("proxy");
    let ports: Vec<_> = proxy["ports"].as_array().unwrap().iter().map(|port| port["containerPort"].as_u64()).collect();
    assert_eq!(ports, [Some(CONSUMERS.1), Some(OPERATORS.1)]);
    for (service, port) in [("trunkline", CONSUMERS.1), ("trunkline-operators", OPERATORS.1)] {
        assert_eq!(manifest("Service", service)["spec"]["ports"][0]["targetPort"], port);
    }
    let policy = manifest("NetworkPolicy", "trunkline");
    let opened = policy["spec"]["ingress"].as_array().unwrap().iter().map(|rule| rule["ports"][0]["port"].as_u64());
    assert_eq!(opened.collect::<Vec<_>>(), [Some(CONSUMERS.1), Some(OPERATORS.1)]);
    let scrape = document("deploy/prometheus/prometheus-kubernetes.yml");
    let scrape = &scrape["scrape_configs"][0]["dns_sd_configs"][0];
    assert_eq!(
        (&scrape["names"][0], &scrape["port"]),
        (&"trunkline-operators.trunkline.svc".into(), &OPERATORS.1.into())
    );
}

#[test]
fn traffic_that_is_not_listed_is_denied() {
    let deny = manifest("NetworkPolicy", "default-deny");
    assert_eq!(deny["spec"]["podSelector"], serde_json::json!({}));
    assert_eq!(strings(&deny["spec"]["policyTypes"]), ["Ingress", "Egress"]);
    assert!(deny["spec"]["ingress"].is_null() && deny["spec"]["egress"].is_null());
    let own = manifest("NetworkPolicy", "trunkline");
    for direction in ["ingress", "egress"] {
        for rule in own["spec"][direction].as_array().unwrap() {
            let peers = rule[if direction == "ingress" { "from" } else { "to" }].as_array().unwrap();
            assert!(!peers.is_empty() && !rule["ports"].as_array().unwrap().is_empty(), "{rule}");
            for block in peers.iter().filter(|peer| peer["ipBlock"].is_object()) {
                assert!(strings(&block["ipBlock"]["except"]).len() >= 2, "private addresses are excluded");
            }
        }
    }
}

#[test]
fn the_configuration_is_good_with_the_variables_of_the_secret() {
    let config = manifest("ConfigMap", "trunkline")["data"]["trunkline.toml"].take();
    let secret = manifest("Secret", "trunkline")["stringData"].take();
    let variables = secret.as_object().unwrap();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
    assert_good("configmap.yaml", config.as_str().unwrap(), &variables);
    let command = strings(&container("trunkline")["args"]).join(" ");
    assert_eq!(command, "run --config /etc/trunkline/trunkline.toml");
    assert!(text("Dockerfile").contains("CMD [\"run\", \"--config\", \"/etc/trunkline/trunkline.toml\"]"));
}

#[test]
fn secrets_are_placeholders() {
    for secret in manifests().iter().filter(|manifest| manifest["kind"] == "Secret") {
        assert!(secret["data"].is_null());
        for (name, value) in secret["stringData"].as_object().unwrap() {
            assert!(value.as_str().unwrap().contains("CHANGE-ME"), "{name}");
            let compared =
                name != "tokens.conf" || value.as_str().unwrap().lines().all(|line| line.starts_with("\"~^"));
            assert!(compared, "nginx compares plain words without case");
        }
    }
}

/// All fields were validated against the schemas. For a new field, run `deploy/kubernetes/validate`, then set
/// `UPDATE_GOLDEN=1`.
#[test]
fn every_field_is_one_that_was_validated() {
    let mut fields = BTreeSet::new();
    for manifest in manifests() {
        let free = ["data", "stringData", "labels", "matchLabels", "selector"];
        collect(manifest["kind"].as_str().unwrap(), &manifest, &free, &mut fields);
    }
    let mut listing = String::new();
    for field in fields {
        writeln!(listing, "{field}").unwrap();
    }
    let golden = path("tests/golden/kubernetes-fields.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &listing).unwrap();
    }
    assert_eq!(listing, fs::read_to_string(golden).unwrap_or_default(), "run deploy/kubernetes/validate");
}

/// Paths and types of everything below a value. The content of a free key is not defined by Kubernetes.
fn collect(at: &str, value: &Value, free: &[&str], into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_free = free.contains(&name.as_str()) && !value.get("matchLabels").is_some_and(Value::is_object);
                if is_free {
                    into.insert(format!("{at}.{name}: its own"));
                } else {
                    collect(&format!("{at}.{name}"), value, free, into);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(&format!("{at}[]"), item, free, into)),
        Value::String(_) => drop(into.insert(format!("{at}: string"))),
        Value::Number(_) => drop(into.insert(format!("{at}: number"))),
        Value::Bool(_) => drop(into.insert(format!("{at}: bool"))),
        Value::Null => drop(into.insert(format!("{at}: null"))),
    }
}

//! Replicas as separate hosts: each program in a network namespace of its own, one killed under load.
//!
//! Needs root and `ip`; without them the test says so and ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests panic on purpose")]

mod testbed;

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dstack_api::kms::{AppKeyResponse, Empty, OnboardClient, OnboardRequest};
use dstack_attestation::{Policy, TrustAnchors, Verifier};
use dstack_attester::{Attester, SimulatedDevice};
use dstack_guest::{
    kms_client::{KmsDirectory, KmsIdentity},
    kms_trust::KmsTrust,
};
use dstack_kms::config::{ConfigFile, FirstStart};
use dstack_manifest::KeyScheme;
use dstack_ra_tls::{EvidenceVerifier, VerificationLimits, collateral::CollateralClient};
use dstack_rpc::{Client, Endpoint};
use testbed::{Guest, Stack, der_of, machine::Machine};

const CLIENTS: usize = 2;
const RELEASES: usize = 24;

fn ip(arguments: &str) -> bool {
    let run = Command::new("ip").args(arguments.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

fn must_ip(arguments: &str) {
    assert!(ip(arguments), "ip {arguments}");
}

/// A bridge, and hosts on it.
struct Network {
    tag: String,
    hosts: usize,
    subnet: String,
}

impl Network {
    /// None where this user may not make one.
    fn new(hosts: usize) -> Option<Self> {
        let number = std::process::id() % 250;
        let network = Self { tag: format!("dk{:x}{hosts}", std::process::id()), hosts, subnet: format!("10.{}.{number}", 70 + hosts) };
        let Network { tag, subnet, .. } = &network;
        if !ip(&format!("link add {tag} type bridge")) {
            return None;
        }
        must_ip(&format!("addr add {subnet}.1/24 dev {tag}"));
        must_ip(&format!("link set {tag} up"));
        for host in 0..hosts {
            must_ip(&format!("netns add {tag}h{host}"));
            must_ip(&format!("link add {tag}v{host} type veth peer name eth0 netns {tag}h{host}"));
            must_ip(&format!("link set {tag}v{host} master {tag} up"));
            must_ip(&format!("-n {tag}h{host} addr add {} dev eth0", network.address(host) + "/24"));
            must_ip(&format!("-n {tag}h{host} link set eth0 up"));
            must_ip(&format!("-n {tag}h{host} link set lo up"));
        }
        Some(network)
    }

    fn address(&self, host: usize) -> String {
        format!("{}.{}", self.subnet, 10 + host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            ip(&format!("netns del {}h{host}", self.tag));
        }
        ip(&format!("link del {}", self.tag));
    }
}

/// One host with its KMS.
struct Host {
    process: Child,
    url: String,
    onboard: String,
    ready: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Host {
    fn start(stack: &Stack, network: &Network, number: usize, machine: &Machine, collateral_url: &str) -> Self {
        let address = network.address(number);
        let ready = stack.path(&format!("ready-{number}"));
        let mut file: ConfigFile = stack.settings_on(machine);
        file.listen = format!("{address}:8000").parse().unwrap();
        file.collateral_url = collateral_url.to_owned();
        file.ready_file = Some(ready.clone());
        file.onboard.listen = format!("{address}:8001").parse().unwrap();
        file.onboard.first_start = if number == 0 { FirstStart::Bootstrap } else { FirstStart::Wait };
        let config = stack.path(&format!("kms-{number}.toml"));
        std::fs::write(&config, toml::to_string(&file).unwrap()).unwrap();
        let namespace = format!("{}h{number}", network.tag);
        let log = File::create(stack.path(&format!("kms-{number}.log"))).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &namespace, env!("CARGO_BIN_EXE_dstack-kms"), "--config"])
            .arg(config)
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, url: format!("https://{address}:8000"), onboard: format!("http://{address}:8001/prpc"), ready }
    }

    async fn must_become_ready(&mut self) {
        let started = Instant::now();
        while !self.ready.exists() {
            assert!(self.process.try_wait().unwrap().is_none(), "the KMS ended by itself");
            assert!(started.elapsed() < Duration::from_secs(60), "the KMS does not become ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes the keys of the KMS at `source`.
    async fn must_join(&mut self, source: &str) {
        let calls = OnboardClient(Client::new(Endpoint::parse(&self.onboard).unwrap()));
        let request = OnboardRequest { source_url: source.to_owned(), domain: "replica.test".into() };
        let started = Instant::now();
        while calls.get_attestation_info(&Empty {}).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "the onboarding does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        calls.onboard(&request).await.unwrap_or_else(|error| panic!("{error} [{}]", error.code));
        calls.finish(&Empty {}).await.unwrap();
        self.must_become_ready().await;
    }
}

/// Carries connections to the bridge's address on to the collateral service, which listens on loopback.
async fn bridged(network: &Network, collateral_url: &str) -> String {
    let target = collateral_url.trim_start_matches("http://").to_owned();
    let listener = tokio::net::TcpListener::bind(format!("{}.1:0", network.subnet)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect(target).await {
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    url
}

/// A guest as it boots: the client of `dstack-init`.
async fn guest(stack: &Stack, number: usize) -> (Machine, KmsIdentity) {
    let machine = stack.machine_of(&format!("guest-{number}"), Guest::new(1)).await;
    let (endpoint, log) = (machine.endpoint.clone(), machine.runtime_log.clone());
    let attester = tokio::task::spawn_blocking(move || {
        let device = SimulatedDevice::connect(&endpoint).unwrap();
        Attester::with_device(Box::new(device), &log).unwrap()
    });
    let sys_config = std::fs::read_to_string(&machine.sys_config).unwrap();
    let identity = KmsIdentity { attester: Arc::new(attester.await.unwrap()), sys_config, check: Arc::new(|_| Ok(())) };
    (machine, identity)
}

/// Any KMS that proves its TEE, as guests of apps that pin none believe.
fn trust_in_evidence(stack: &Stack) -> KmsTrust {
    let root = der_of(&std::fs::read_to_string(stack.path("tee/root.pem")).unwrap());
    let anchors = TrustAnchors::hardware().danger_simulated_root(root.to_vec()).unwrap();
    let collateral = CollateralClient::new(&stack.collateral_url).unwrap();
    let verification = EvidenceVerifier::new(Verifier::new(anchors, Policy::default()), collateral, VerificationLimits::default());
    KmsTrust::new(None, Arc::new(verification))
}

async fn release(directory: &KmsDirectory, identity: &KmsIdentity) -> Result<AppKeyResponse, String> {
    let keys = directory.first(identity, |session| async move { session.app_keys(String::new(), KeyScheme::Compatible).await }).await;
    keys.map_err(|error| error.to_string())
}

async fn no_release_fails_while_one_of(hosts: usize) {
    let Some(network) = Network::new(hosts) else {
        eprintln!("skipped: network namespaces cannot be made here");
        return;
    };
    let stack = Stack::start().await;
    let collateral_url = bridged(&network, &stack.collateral_url).await;
    let mut machines = Vec::new();
    for number in 0..hosts {
        machines.push(stack.machine(&format!("host-{number}")).await);
    }
    stack.allow_kms(&[&Guest::new(1)], &machines[0].mr_aggregated);
    let mut running: Vec<Host> =
        machines.iter().enumerate().map(|(number, machine)| Host::start(&stack, &network, number, machine, &collateral_url)).collect();
    let source = running[0].url.clone();
    running[0].must_become_ready().await;
    for replica in &mut running[1..] {
        replica.must_join(&source).await;
    }
    let urls: Vec<String> = running.iter().map(|host| host.url.clone()).collect();
    let done = Arc::new(AtomicUsize::new(0));

    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (machine, identity) = guest(&stack, number).await;
        // Every client begins with another host, so each host has load.
        let mut urls = urls.clone();
        urls.rotate_left(number % hosts);
        let (directory, done) = (KmsDirectory { urls, trust: trust_in_evidence(&stack) }, Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            let _machine = machine;
            let mut answers = Vec::new();
            for _ in 0..RELEASES / CLIENTS {
                answers.push(release(&directory, &identity).await);
                done.fetch_add(1, Ordering::Relaxed);
            }
            answers
        }));
    }
    while done.load(Ordering::Relaxed) < RELEASES / 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running[0].process.kill().unwrap();
    running[0].process.wait().unwrap();

    let mut keys = Vec::new();
    for client in clients {
        for answer in client.await.unwrap() {
            let answer = answer.unwrap_or_else(|error| panic!("a release failed: {error}"));
            keys.push((answer.disk_crypt_key, answer.env_crypt_key, answer.k256_key));
        }
    }
    assert_eq!(keys.len(), RELEASES);
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "all replicas release the same keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_release_fails_while_one_of_two_replicas_dies() {
    no_release_fails_while_one_of(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_release_fails_while_one_of_three_replicas_dies() {
    no_release_fails_while_one_of(3).await;
}

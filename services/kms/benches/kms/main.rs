//! What a KMS costs: CPU of its process per call, latency under load, memory after many releases.
//!
//! Run: `cargo bench -p dstack-kms`. The service is the real program in its own process and its time is that of the process alone, so
//! neither this client nor the collateral service counts. CPU figures are medians of five rounds. Exits with 1 if a promise is broken.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

mod load;
mod policy_service;
mod slow_source;
#[path = "../../tests/testbed/mod.rs"]
mod testbed;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use dstack_api::kms::{AppId, Empty, GetAppKeyRequest, GetTempCaCertResponse, KmsClient};
use dstack_kms::config::ConfigFile;
use dstack_ra_tls::{CertKey, CertificateAuthority, tls, usage};
use dstack_rpc::{Client, Endpoint};
use slow_source::SlowSource;
use testbed::{Stack, der_of, program::Program};

const ROUNDS: usize = 5;
const CALLS: u32 = 100;
const CHEAP_CALLS: u32 = 5000;
const MANY_RELEASES: u32 = 100_000;
const SOURCE_DELAY: Duration = Duration::from_millis(50);

/// One line of the table.
#[derive(Default)]
struct Figures {
    broken: u32,
}

impl Figures {
    fn time(&mut self, what: &str, got: Duration, promised: Duration) {
        self.line(what, &format!("{got:.2?}"), &format!("{promised:.2?}"), got <= promised);
    }

    fn line(&mut self, what: &str, got: &str, promised: &str, kept: bool) {
        println!("  {what:<62} {got:>10}  promised {promised:>8}  {}", if kept { "kept" } else { "BROKEN" });
        self.broken += u32::from(!kept);
    }
}

/// The program with limits that one load generator does not reach; each call is counted against them all the same.
fn unlimited(stack: &Stack) -> Program {
    Program::start_with(stack, without_limits(stack), None)
}

fn without_limits(stack: &Stack) -> ConfigFile {
    let mut settings = stack.settings();
    (settings.limits.per_source, settings.limits.per_app) = (1_000_000, 1_000_000);
    settings
}

/// One client per call, each with a key, quote and connection of its own, made before the clock starts.
fn clients(stack: &Stack, kms: &Program, temp: &GetTempCaCertResponse, count: u32) -> Vec<KmsClient<Client>> {
    let authority = CertificateAuthority::load(&temp.temp_ca_cert, CertKey::from_pem(&temp.temp_ca_key).unwrap()).unwrap();
    let root = der_of(&temp.ca_cert);
    let client = |_| {
        let config = tls::pinned_client(&root, usage::KMS_RPC, Some(&stack.guest(1).identity(&authority))).unwrap();
        KmsClient(Client::new(Endpoint::parse(&kms.url).unwrap()).with_tls(config))
    };
    (0..count).map(client).collect()
}

fn request() -> GetAppKeyRequest {
    GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() }
}

async fn release(client: &KmsClient<Client>) {
    client.get_app_key(&request()).await.unwrap();
}

/// CPU of the process per call.
async fn cpu_of(kms: &Program, calls: u32, mut call: impl AsyncFnMut(u32)) -> Duration {
    let before = kms.cpu();
    for index in 0..calls {
        call(index).await;
    }
    (kms.cpu() - before) / calls
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

async fn cpu_per_release(figures: &mut Figures, stack: &Stack, kms: &Program, temp: &GetTempCaCertResponse) {
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let clients = clients(stack, kms, temp, CALLS);
        fresh.push(cpu_of(kms, CALLS, async |index| release(&clients[index as usize]).await).await);
        again.push(cpu_of(kms, CALLS, async |_| release(&clients[0]).await).await);
    }
    figures.time("GetAppKey, new connection, evidence never seen, CPU", median(fresh), Duration::from_micros(1400));
    figures.time("GetAppKey, kept connection, CPU", median(again), Duration::from_micros(500));
}

/// What it costs the KMS to ask a service: two that differ in nothing else, in turn.
async fn cpu_of_asking_a_service(figures: &mut Figures, stack: &Stack, kms: &Program, temp: &GetTempCaCertResponse) {
    let settings = policy_service::asking(stack, policy_service::start().await, without_limits(stack));
    let asking = Program::start_with(stack, settings, None);
    let asking_temp = asking.anonymous().get_temp_ca_cert(&Empty {}).await.unwrap();
    let (own, served) = (clients(stack, kms, temp, 1).remove(0), clients(stack, &asking, &asking_temp, 1).remove(0));
    release(&own).await;
    release(&served).await;
    let mut added = Vec::new();
    for _ in 0..ROUNDS {
        let own = cpu_of(kms, CALLS, async |_| release(&own).await).await;
        added.push(cpu_of(&asking, CALLS, async |_| release(&served).await).await.saturating_sub(own));
    }
    figures.time("policy by webhook adds to GetAppKey, kept connection, CPU", median(added), Duration::from_micros(300));
}

async fn cpu_per_public_call(figures: &mut Figures, kms: &Program) {
    let strangers: Vec<_> = (0..16).map(|_| kms.anonymous()).collect();
    let app = AppId { app_id: vec![1; 20], ..AppId::default() };
    let (mut meta, mut env) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = kms.cpu();
        load::calls(&strangers, CHEAP_CALLS, async |kms| drop(kms.get_meta(&Empty {}).await.unwrap())).await;
        let between = kms.cpu();
        load::calls(&strangers, CHEAP_CALLS, async |kms| drop(kms.get_app_env_encrypt_pub_key(&app).await.unwrap())).await;
        meta.push((between - before) / CHEAP_CALLS);
        env.push((kms.cpu() - between) / CHEAP_CALLS);
    }
    figures.time("GetAppEnvEncryptPubKey, 16 kept connections, CPU", median(env), Duration::from_micros(150));
    figures.time("GetMeta, 16 kept connections, CPU", median(meta), Duration::from_micros(17));
}

async fn latency_at_half_load(figures: &mut Figures, clients: &[KmsClient<Client>]) {
    let saturation = load::saturation(clients, Duration::from_secs(3), release).await;
    let latency = load::latency(clients, saturation / 2.0, Duration::from_secs(5), release).await;
    println!("  saturation with {} kept connections: {saturation:.0} releases/s, client and service on the same cores", clients.len());
    figures.time("GetAppKey at half of saturation, 99th percentile", latency.percentile(99), Duration::from_millis(10));
}

/// Latency when the collateral service is slow: the first guest of a platform waits for it, the others do not.
async fn latency_with_slow_source(figures: &mut Figures, stack: &mut Stack) {
    let source = SlowSource::start(&stack.collateral_url, SOURCE_DELAY).await;
    let fast = std::mem::replace(&mut stack.collateral_url, source.url.clone());
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let kms = unlimited(stack);
        let temp = kms.anonymous().get_temp_ca_cert(&Empty {}).await.unwrap();
        for (index, client) in clients(stack, &kms, &temp, CALLS / 5).iter().enumerate() {
            let started = Instant::now();
            release(client).await;
            if index == 0 { cold.push(started.elapsed()) } else { warm.push(started.elapsed()) }
        }
    }
    stack.collateral_url = fast;
    assert!(median(cold.clone()) >= SOURCE_DELAY, "the source was asked");
    figures.time("slow collateral (50 ms): first guest of a platform, median", median(cold), Duration::from_millis(80));
    figures.time("slow collateral (50 ms): new guests after it, median", median(warm), Duration::from_millis(5));
}

async fn memory_after_many(figures: &mut Figures, kms: &Program, clients: &[KmsClient<Client>]) {
    load::calls(clients, MANY_RELEASES, release).await;
    let mib = kms.resident_bytes() / (1 << 20);
    figures.line(&format!("resident memory after {MANY_RELEASES} releases"), &format!("{mib} MiB"), "60 MiB", mib <= 60);
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut stack = Stack::start().await;
    let kms = unlimited(&stack);
    let temp = kms.anonymous().get_temp_ca_cert(&Empty {}).await.unwrap();
    let guests = clients(&stack, &kms, &temp, 16);
    for guest in &guests {
        release(guest).await;
    }
    println!("KMS, its own process, collateral cached; CPU per call are medians of {ROUNDS} rounds");
    let mut figures = Figures::default();
    cpu_per_release(&mut figures, &stack, &kms, &temp).await;
    cpu_of_asking_a_service(&mut figures, &stack, &kms, &temp).await;
    cpu_per_public_call(&mut figures, &kms).await;
    latency_at_half_load(&mut figures, &guests).await;
    memory_after_many(&mut figures, &kms, &guests).await;
    drop(kms);
    latency_with_slow_source(&mut figures, &mut stack).await;
    if figures.broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

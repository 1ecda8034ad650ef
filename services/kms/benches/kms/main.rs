//! CPU time that the KMS process itself spends per GetAppKey, with the collateral cached. Medians of five rounds.
//!
//! Run: `cargo bench -p dstack-kms`. The service is the real program in its own process; its time is read from `/proc/<pid>/stat`, so
//! neither this client nor the collateral service counts. Exits with 1 above the promised 2 ms.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a bench prints and may panic")]

#[path = "../tests/testbed/mod.rs"]
mod testbed;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use dstack_api::kms::{Empty, GetAppKeyRequest, GetTempCaCertResponse, KmsClient};
use dstack_ra_tls::{CertKey, CertificateAuthority, tls, usage};
use dstack_rpc::{Client, Endpoint};
use testbed::{Stack, der_of, program::Program};

const ROUNDS: usize = 5;
const CALLS: u32 = 100;
const PROMISED: Duration = Duration::from_millis(2);

/// One client per call, each with a key, quote and connection of its own, made before the clock starts.
fn clients(stack: &Stack, kms: &Program, temp: &GetTempCaCertResponse) -> Vec<KmsClient<Client>> {
    let authority = CertificateAuthority::load(&temp.temp_ca_cert, CertKey::from_pem(&temp.temp_ca_key).unwrap()).unwrap();
    let root = der_of(&temp.ca_cert);
    let client = |_| {
        let config = tls::pinned_client(&root, usage::KMS_RPC, Some(&stack.guest(1).identity(&authority))).unwrap();
        KmsClient(Client::new(Endpoint::parse(&kms.url).unwrap()).with_tls(config))
    };
    (0..CALLS).map(client).collect()
}

async fn measure(kms: &Program, calls: &[&KmsClient<Client>]) -> (Duration, Duration) {
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    let (cpu, started) = (kms.cpu(), Instant::now());
    for client in calls {
        client.get_app_key(&request).await.unwrap();
    }
    ((kms.cpu() - cpu) / CALLS, started.elapsed() / CALLS)
}

fn median(mut values: Vec<(Duration, Duration)>) -> (Duration, Duration) {
    let mut wall: Vec<Duration> = values.iter().map(|(_, wall)| *wall).collect();
    values.sort();
    wall.sort();
    (values[ROUNDS / 2].0, wall[ROUNDS / 2])
}

#[tokio::main]
async fn main() -> ExitCode {
    let stack = Stack::start().await;
    let kms = Program::start(&stack);
    let temp = kms.anonymous().get_temp_ca_cert(&Empty {}).await.unwrap();
    let warm_up = clients(&stack, &kms, &temp);
    measure(&kms, &[&warm_up[0]]).await;
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let clients = clients(&stack, &kms, &temp);
        fresh.push(measure(&kms, &clients.iter().collect::<Vec<_>>()).await);
        again.push(measure(&kms, &vec![&clients[0]; CALLS as usize]).await);
    }

    let ((cpu, wall), (cpu_again, wall_again)) = (median(fresh), median(again));
    println!("GetAppKey, CPU of the KMS process per call, medians of {ROUNDS} rounds of {CALLS} calls, collateral cached");
    println!("  new guest: new connection, new evidence   {cpu:>9.2?} CPU  {wall:>9.2?} elapsed");
    println!("  same guest again on its connection        {cpu_again:>9.2?} CPU  {wall_again:>9.2?} elapsed");
    if cpu > PROMISED {
        println!("above the promised {PROMISED:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

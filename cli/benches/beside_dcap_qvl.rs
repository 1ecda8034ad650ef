//! `dstack verify` beside the `dcap-qvl` command for the same job: a TDX quote in a file, its collateral at a service on this machine, the
//! clock at a time when the papers were valid. In turn, in one run.
//!
//! `make bench` installs the other command; it has no option for the time and gets it from `libfaketime`, which both carry.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark talks and stops")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use dstack_attestation::QuoteCollateral;
use dstack_testkit::vendor_services::VendorService;

const RUNS: usize = 11;
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/attestation/tests/testdata/tdx/");
const QUOTE: &str = "quotes/f1c8503301126c30.bin";
const COLLATERAL: &str = "collateral/b0c06f000000-tdx-platform-20250313-e17.json";
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

fn timed(command: &mut Command) -> Duration {
    let started = Instant::now();
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("the command is installed by `make bench`");
    assert!(output.status.success(), "the quote is genuine: {}", String::from_utf8_lossy(&output.stderr));
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let collateral = QuoteCollateral::parse_json(&std::fs::read_to_string(format!("{DATA}{COLLATERAL}")).unwrap()).unwrap();
    let service = VendorService::intel("tdx", collateral).await;
    let mut config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    writeln!(config, "collateral_url = \"{}\"", service.url).unwrap();
    let quote = format!("{DATA}{QUOTE}");

    let at_that_time = |program: &str| {
        let mut command = Command::new(program);
        command.envs([("PCCS_URL", service.url.as_str()), ("LD_PRELOAD", FAKETIME), ("FAKETIME", "2025-03-23 20:36:12"), ("TZ", "UTC")]);
        command
    };
    let ours = || {
        let mut command = at_that_time(env!("CARGO_BIN_EXE_dstack"));
        timed(command.args(["verify", &quote, "--at", "2025-03-23T20:36:12Z", "--json", "--config"]).arg(config.path()))
    };
    let theirs = || timed(at_that_time("dcap-qvl").args(["verify", &quote]));
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let times = (ours(), theirs());
        // The first pair warms up.
        if run > 0 {
            our_times.push(times.0);
            their_times.push(times.1);
        }
    }
    assert!(service.requests() >= 2 * RUNS, "both asked the service");
    let (ours, theirs) = (median(our_times), median(their_times));
    println!("verify with fetched collateral: dstack {ours:.1} ms, dcap-qvl {theirs:.1} ms, ratio {:.2} (promised 1.15)", ours / theirs);
    assert!(ours <= 1.15 * theirs, "slower than dcap-qvl");
}

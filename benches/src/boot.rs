//! Boot time, ours and the control's in turn.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use dstack_e2e::{Stack, try_get_quickly};

use crate::{median, stock::Stock};

const DEADLINE: Duration = Duration::from_secs(600);
/// Ours over the control's, to HTTP 200: what SPECIFICATION.md promises.
const PROMISE: f64 = 0.5;

struct Ours {
    agent: Duration,
    http: Duration,
}

pub(crate) fn run(runs: usize) -> anyhow::Result<()> {
    let stock = Stock::build()?;
    let stack = Stack::start();
    let images = stack.dstack(&["os", "list", "--json"]).must_succeed().json();
    let firmware = PathBuf::from(images[0]["path"].as_str().context("no OS image")?).join("ovmf.fd");
    let (mut agent, mut http, mut control) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        let ours = boot(&stack, run)?;
        let theirs = stock.boot(&firmware)?;
        println!(
            "run {run}: ours {:.1} s to agent, {:.1} s to HTTP 200; stock Debian 13 {:.1} s to HTTP 200",
            ours.agent.as_secs_f64(),
            ours.http.as_secs_f64(),
            theirs.as_secs_f64()
        );
        agent.push(ours.agent.as_secs_f64());
        http.push(ours.http.as_secs_f64());
        control.push(theirs.as_secs_f64());
    }
    let (agent, http, control) = (median(agent), median(http), median(control));
    let ratio = http / control;
    println!(
        "median of {runs}: agent {agent:.1} s, HTTP 200 {http:.1} s, stock {control:.1} s, ratio {ratio:.2} (promised at most {PROMISE})"
    );
    ensure!(ratio <= PROMISE, "the boot promise is broken: {ratio:.2}");
    Ok(())
}

/// From the accepted deployment on. The stack, its KMS and the sealed environment are as a user has them.
fn boot(stack: &Stack, run: usize) -> anyhow::Result<Ours> {
    let name = format!("boot{run}");
    let before = SystemTime::now();
    let app = stack.deploy_hello_without_waiting(&name, "bench");
    // The VMM's own mark of acceptance; the clock of this process started earlier by what packing and sealing took.
    let accepted = SystemTime::UNIX_EPOCH + Duration::from_millis(stack.accepted_at_ms(&name));
    let since_accepted = move || accepted.elapsed().unwrap_or_default();
    ensure!(accepted >= before, "the VMM's clock is behind ours");
    let agent_url = app.agent_url.clone();
    let agent = std::thread::spawn(move || answer(&agent_url, since_accepted));
    let http = answer(&format!("{}/health", app.url), since_accepted)?;
    let agent = agent.join().map_err(|_| anyhow::anyhow!("the agent's watcher broke off"))??;
    let _removed = stack.dstack(&["rm", "-f", &name]).must_succeed();
    Ok(Ours { agent, http })
}

/// Time of the first successful answer.
fn answer(url: &str, clock: impl Fn() -> Duration) -> anyhow::Result<Duration> {
    while try_get_quickly(url).is_err() {
        ensure!(clock() < DEADLINE, "{url} did not answer in time");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(clock())
}

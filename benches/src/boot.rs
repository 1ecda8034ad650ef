//! Boot time, ours and the control's in turn.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use dstack_e2e::{Stack, try_get};

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
    let app = stack.deploy_hello_without_waiting(&name, "bench");
    let start = Instant::now();
    let health = format!("{}/health", app.url);
    let mut agent = None;
    while try_get(&health).is_err() {
        if agent.is_none() && try_get(&app.agent_url).is_ok() {
            agent = Some(start.elapsed());
        }
        if start.elapsed() > DEADLINE {
            let info = stack.dstack(&["info", &name]);
            anyhow::bail!("{name} did not answer in time: {}", info.stdout);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let http = start.elapsed();
    let _removed = stack.dstack(&["rm", "-f", &name]).must_succeed();
    Ok(Ours { agent: agent.unwrap_or(http), http })
}

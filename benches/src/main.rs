//! Whole-system benchmarks. Each prints its figures and fails when a promise of SPECIFICATION.md is broken.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod boot;
mod footprint;
mod stock;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Whole-system benchmarks")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// From an accepted deployment to HTTP 200, against a stock Debian 13 with the same kernel and containers.
    Boot {
        /// Pairs to run.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Sizes on disk.
    Footprint,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().bench {
        Bench::Boot { runs } => boot::run(runs),
        Bench::Footprint => footprint::run(),
    }
}

/// Middle value; of an even number the lower one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

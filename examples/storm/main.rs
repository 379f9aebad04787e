//! Simulations of the retry layer and its peers in three experiments: an outage, a rate limit and
//! random failures.
//!
//! `cargo run --release --example storm` runs all experiments and draws `docs/storm.svg`. The clock is
//! tokio's paused clock and the seeds are fixed: each run prints the same figures. With `--check` it
//! exits with 1 if the layer misses a target.

mod args;

mod outage;

mod ratelimit;

mod random_failures;

mod policies;

mod traffic;

mod harness;

mod report;

mod targets;

mod picture;

use std::{error::Error, path::PathBuf, process::ExitCode};

use self::args::{Args, Experiment, USAGE};

fn main() -> ExitCode {
    let args = match Args::from_env() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(missed) if args.check && !missed.is_empty() => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the selected experiments. Returns a message for each missed target.
fn run(args: &Args) -> Result<Vec<String>, Box<dyn Error>> {
    println!("seeds: {:?}\n", args.seeds);
    let outage = run_if_selected(args, Experiment::Outage, || outage::run(&args.seeds));
    let ratelimit = run_if_selected(args, Experiment::RateLimit, || {
        ratelimit::run(&args.seeds, &args.strategies())
    });
    let random_failures = run_if_selected(args, Experiment::RandomFailures, || {
        random_failures::run(&args.seeds)
    });
    if args.only.is_none() {
        let path = args.picture.clone().unwrap_or_else(default_picture_path);
        let drawn = picture::draw(&path, &outage, &ratelimit);
        drawn.map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("picture: {}", path.display());
    }
    let missed = targets::find_missed(&outage, &ratelimit, &random_failures);
    if args.check {
        missed
            .iter()
            .for_each(|target| eprintln!("missed: {target}"));
    }
    Ok(missed)
}

fn run_if_selected<R: report::Row>(
    args: &Args,
    experiment: Experiment,
    run: impl FnOnce() -> Vec<R>,
) -> Vec<R> {
    if !args.selects(experiment) {
        return Vec::new();
    }
    let rows = run();
    report::print_rows(&rows);
    rows
}

fn default_picture_path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "docs", "storm.svg"]
        .iter()
        .collect()
}

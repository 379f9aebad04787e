//! Two storms and a drizzle: the layer and its peers in an outage, against a rate limit, and where
//! attempts fail by chance.
//!
//! `cargo run --release --example storm` runs all three under tokio's paused clock with fixed seeds, so
//! that each run prints the same figures, and draws `docs/storm.svg`. With `--check` it exits with 1
//! where the layer misses a target.

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
        Err(mistake) => {
            eprintln!("{mistake}\n\n{USAGE}");
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

/// Gives the targets that are missed.
fn run(args: &Args) -> Result<Vec<String>, Box<dyn Error>> {
    println!("seeds: {:?}\n", args.seeds);
    let outage = show_if(args, Experiment::Outage, || outage::run(&args.seeds));
    let ratelimit = show_if(args, Experiment::RateLimit, || {
        ratelimit::run(&args.seeds, &args.strategies())
    });
    let independent = show_if(args, Experiment::Independent, || {
        random_failures::run(&args.seeds)
    });
    if args.only.is_none() {
        let path = args
            .picture
            .clone()
            .unwrap_or_else(picture_of_the_repository);
        let drawn = picture::draw(&path, &outage, &ratelimit);
        drawn.map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("picture: {}", path.display());
    }
    let missed = targets::missed(&outage, &ratelimit, &independent);
    if args.check {
        missed
            .iter()
            .for_each(|target| eprintln!("missed: {target}"));
    }
    Ok(missed)
}

fn show_if<R: report::Row>(
    args: &Args,
    experiment: Experiment,
    run: impl FnOnce() -> Vec<R>,
) -> Vec<R> {
    if !args.wants(experiment) {
        return Vec::new();
    }
    let rows = run();
    report::show(&rows);
    rows
}

fn picture_of_the_repository() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "docs", "storm.svg"]
        .iter()
        .collect()
}

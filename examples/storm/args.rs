//! The command line.

use std::{env, path::PathBuf};

use crate::policies::Strategy;

pub(crate) const USAGE: &str = "\
cargo run --release --example storm -- [options]
  --check            exit with 1 if a target is missed
  --only EXPERIMENT  run one experiment (outage, ratelimit or independent), draw no picture
  --strategy NAME    run one strategy of the rate limit; requires --only ratelimit
  --seeds N          run the seeds 1 to N (default: 5)
  --picture FILE     write the picture to FILE (default: docs/storm.svg in the repository)";

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) check: bool,
    pub(crate) only: Option<Experiment>,
    pub(crate) strategy: Option<Strategy>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) picture: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Experiment {
    Outage,
    RateLimit,
    RandomFailures,
}

/// The default number of seeds, and the minimum for the targets.
const DEFAULT_SEEDS: u64 = 5;

impl Args {
    pub(crate) fn from_env() -> Result<Self, String> {
        let args = env::args_os().skip(1).map(|arg| {
            arg.into_string()
                .map_err(|arg| format!("not UTF-8: {}", arg.to_string_lossy()))
        });
        Self::parse(args)
    }

    fn parse(mut raw: impl Iterator<Item = Result<String, String>>) -> Result<Self, String> {
        let mut args = Self {
            check: false,
            only: None,
            strategy: None,
            seeds: (1..=DEFAULT_SEEDS).collect(),
            picture: None,
        };
        while let Some(flag) = raw.next().transpose()? {
            let mut value = || match raw.next() {
                Some(value) => value,
                None => Err(format!("{flag} requires a value")),
            };
            match flag.as_str() {
                "--check" => args.check = true,
                "--only" => args.only = Some(parse_experiment(&value()?)?),
                "--strategy" => args.strategy = Some(parse_strategy(&value()?)?),
                "--seeds" => args.seeds = parse_seeds(&value()?)?,
                "--picture" => args.picture = Some(value()?.into()),
                _ => return Err(format!("unknown argument: {flag}")),
            }
        }
        args.validate()
    }

    fn validate(self) -> Result<Self, String> {
        if self.picture.is_some() && self.only.is_some() {
            return Err(
                "--picture cannot be combined with --only: the picture shows all experiments"
                    .into(),
            );
        }
        if self.check && self.seeds.len() < DEFAULT_SEEDS as usize {
            return Err(format!("--check requires at least {DEFAULT_SEEDS} seeds"));
        }
        if self.strategy.is_some() && self.only != Some(Experiment::RateLimit) {
            return Err("--strategy requires --only ratelimit".into());
        }
        Ok(self)
    }

    pub(crate) fn selects(&self, experiment: Experiment) -> bool {
        self.only.is_none_or(|only| only == experiment)
    }

    pub(crate) fn strategies(&self) -> Vec<Strategy> {
        let mut strategies = Strategy::ALL.to_vec();
        strategies.retain(|strategy| self.strategy.is_none_or(|only| only == *strategy));
        strategies
    }
}

fn parse_experiment(name: &str) -> Result<Experiment, String> {
    match name {
        "outage" => Ok(Experiment::Outage),
        "ratelimit" => Ok(Experiment::RateLimit),
        "independent" => Ok(Experiment::RandomFailures),
        _ => Err(format!("unknown experiment: {name}")),
    }
}

fn parse_strategy(name: &str) -> Result<Strategy, String> {
    let mut all = Strategy::ALL.into_iter();
    let found = all.find(|strategy| strategy.name() == name);
    found.ok_or_else(|| format!("unknown strategy: {name}"))
}

fn parse_seeds(count: &str) -> Result<Vec<u64>, String> {
    match count.parse() {
        Ok(count @ 1..=1000) => Ok((1..=count).collect()),
        _ => Err(format!(
            "--seeds expects a number from 1 to 1000, got {count}"
        )),
    }
}

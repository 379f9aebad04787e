//! The command line.

use std::{env, path::PathBuf};

use crate::policies::Strategy;

pub(crate) const USAGE: &str = "\
cargo run --release --example storm -- [options]
  --check            exit with 1 where a target is missed
  --only EXPERIMENT  run one experiment, and draw no picture: outage, ratelimit or independent
  --strategy NAME    run one strategy of the rate limit, with --only ratelimit
  --seeds N          run the seeds 1 to N; 5 unless said otherwise
  --picture FILE     where to write the picture; docs/storm.svg of the repository unless said otherwise";

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
    Independent,
}

/// As many as the targets ask for; the seeds are 1 to 5.
const SEEDS: u64 = 5;

impl Args {
    pub(crate) fn from_env() -> Result<Self, String> {
        let words = env::args_os().skip(1).map(|word| {
            word.into_string()
                .map_err(|word| format!("not UTF-8: {}", word.to_string_lossy()))
        });
        Self::parse(words)
    }

    fn parse(mut words: impl Iterator<Item = Result<String, String>>) -> Result<Self, String> {
        let mut args = Self {
            check: false,
            only: None,
            strategy: None,
            seeds: (1..=SEEDS).collect(),
            picture: None,
        };
        while let Some(word) = words.next().transpose()? {
            let mut value = || match words.next() {
                Some(value) => value,
                None => Err(format!("{word} needs a value")),
            };
            match word.as_str() {
                "--check" => args.check = true,
                "--only" => args.only = Some(experiment(&value()?)?),
                "--strategy" => args.strategy = Some(strategy(&value()?)?),
                "--seeds" => args.seeds = seeds(&value()?)?,
                "--picture" => args.picture = Some(value()?.into()),
                _ => return Err(format!("unknown argument: {word}")),
            }
        }
        args.consistent()
    }

    fn consistent(self) -> Result<Self, String> {
        if self.picture.is_some() && self.only.is_some() {
            return Err("the picture needs all experiments: leave --only or --picture out".into());
        }
        if self.check && self.seeds.len() < SEEDS as usize {
            return Err(format!("the targets are means over at least {SEEDS} seeds"));
        }
        if self.strategy.is_some() && self.only != Some(Experiment::RateLimit) {
            return Err("--strategy goes with --only ratelimit".into());
        }
        Ok(self)
    }

    pub(crate) fn wants(&self, experiment: Experiment) -> bool {
        self.only.is_none_or(|only| only == experiment)
    }

    pub(crate) fn strategies(&self) -> Vec<Strategy> {
        let mut strategies = Strategy::ALL.to_vec();
        strategies.retain(|it| self.strategy.is_none_or(|only| only == *it));
        strategies
    }
}

fn experiment(name: &str) -> Result<Experiment, String> {
    match name {
        "outage" => Ok(Experiment::Outage),
        "ratelimit" => Ok(Experiment::RateLimit),
        "independent" => Ok(Experiment::Independent),
        _ => Err(format!("no such experiment: {name}")),
    }
}

fn strategy(name: &str) -> Result<Strategy, String> {
    let mut all = Strategy::ALL.into_iter();
    let found = all.find(|strategy| strategy.name() == name);
    found.ok_or_else(|| format!("no such strategy: {name}"))
}

fn seeds(count: &str) -> Result<Vec<u64>, String> {
    match count.parse() {
        Ok(count @ 1..=1000) => Ok((1..=count).collect()),
        _ => Err(format!("not a number of seeds from 1 to 1000: {count}")),
    }
}

//! What the crate's own layer has to reach, as means over at least five seeds.

use std::time::Duration;

use crate::{
    outage::{self, Setting},
    policies::{Retrying, Strategy},
    random_failures,
    ratelimit::{self, Scenario},
    report::Row,
};

/// The targets of all experiments that are missed, each as a sentence.
pub(crate) fn missed(
    outage: &[outage::Row],
    ratelimit: &[ratelimit::Row],
    independent: &[random_failures::Row],
) -> Vec<String> {
    let mut targets = Vec::new();
    targets.extend(outage.iter().flat_map(|row| of_outage(row, outage)));
    targets.extend(ratelimit.iter().flat_map(of_ratelimit));
    targets.extend(independent.iter().flat_map(of_independent));
    targets.retain(|target| !target.reached);
    targets.into_iter().map(|target| target.missed).collect()
}

struct Target {
    reached: bool,
    missed: String,
}

impl Target {
    fn at_most(row: &impl Row, what: &str, limit: f64, value: f64) -> Self {
        Self {
            reached: value <= limit,
            missed: format!("{what} {value:.4} is above {limit:.4}: {}", row.line()),
        }
    }

    fn at_least(row: &impl Row, what: &str, limit: f64, value: f64) -> Self {
        Self {
            reached: value >= limit,
            missed: format!("{what} {value:.4} is below {limit:.4}: {}", row.line()),
        }
    }
}

fn of_outage(row: &outage::Row, all: &[outage::Row]) -> Vec<Target> {
    const AT_HALF_PAST_ONE: Setting = Setting {
        total_timeout: Some(Duration::from_millis(1500)),
        ..Setting::new(200, 20)
    };
    const BUSY: Setting = Setting::new(280, 20);
    const COMMON: Setting = Setting::new(200, 20);
    if row.policy != Retrying::Ours {
        return Vec::new();
    }
    match row.setting {
        BUSY => vec![recovers_as_without_retries(row, all)],
        COMMON | AT_HALF_PAST_ONE => vec![
            Target::at_most(row, "peak", 1.5, row.peak()),
            Target::at_most(row, "highest peak", 1.7, row.highest_peak()),
            Target::at_most(row, "amplification after", 1.05, row.after()),
            recovers_as_without_retries(row, all),
        ],
        _ => Vec::new(),
    }
}

fn recovers_as_without_retries(row: &outage::Row, all: &[outage::Row]) -> Target {
    let floor = |it: &&outage::Row| it.policy == Retrying::None && it.setting == row.setting;
    let floor = all.iter().find(floor).and_then(outage::Row::recovery);
    let limit = 1.1 * floor.unwrap_or(f64::INFINITY);
    let recovery = row.recovery().unwrap_or(f64::INFINITY);
    Target {
        reached: recovery.is_finite() && recovery <= limit,
        missed: format!(
            "recovery {recovery:.1} s is above {limit:.1} s: {}",
            row.line()
        ),
    }
}

fn of_ratelimit(row: &ratelimit::Row) -> Vec<Target> {
    if row.strategy != Strategy::OursGate {
        return Vec::new();
    }
    let (rejected, used) = match (row.scenario, row.headers) {
        (Scenario::Steady, false) => (0.06, 0.90),
        (Scenario::Steady, true) => (0.04, 0.97),
        (Scenario::Halved, false) => (0.08, 0.86),
        (Scenario::Halved, true) => (0.05, 0.95),
        (Scenario::Doubled, false) => (0.06, 0.70),
        (Scenario::Doubled, true) => (0.04, 0.95),
        (Scenario::FourProcesses, false) => (0.08, 0.88),
        (Scenario::FourProcesses, true) => (0.08, 0.90),
    };
    vec![
        Target::at_most(row, "429s for each success", rejected, row.rejected_per_ok),
        Target::at_least(row, "share of the quota", used, row.quota_used),
        Target::at_most(row, "share of failed calls", 0.0, row.failed),
    ]
}

fn of_independent(row: &random_failures::Row) -> Vec<Target> {
    let least = match row.p {
        0.05 => 0.999,
        0.10 => 0.997,
        _ => return Vec::new(),
    };
    match row.policy {
        Retrying::Ours => vec![Target::at_least(
            row,
            "share of successes",
            least,
            row.success,
        )],
        _ => Vec::new(),
    }
}

//! The targets of this crate's layer, as means over at least five seeds.

use std::time::Duration;

use crate::{
    outage::{self, Setting},
    policies::{PolicyKind, Strategy},
    random_failures,
    ratelimit::{self, Scenario},
    report::Row,
};

/// Returns a message for each missed target of all experiments.
pub(crate) fn find_missed(
    outage: &[outage::Row],
    ratelimit: &[ratelimit::Row],
    random_failures: &[random_failures::Row],
) -> Vec<String> {
    let mut targets = Vec::new();
    targets.extend(outage.iter().flat_map(|row| check_outage(row, outage)));
    targets.extend(ratelimit.iter().flat_map(check_ratelimit));
    targets.extend(random_failures.iter().flat_map(check_random_failures));
    targets.retain(|target| !target.reached);
    targets.into_iter().map(|target| target.message).collect()
}

struct Target {
    reached: bool,
    /// The message if the target is missed.
    message: String,
}

impl Target {
    fn at_most(row: &impl Row, figure: &str, limit: f64, value: f64) -> Self {
        Self {
            reached: value <= limit,
            message: format!("{figure} {value:.4} is above {limit:.4}: {}", row.line()),
        }
    }

    fn at_least(row: &impl Row, figure: &str, limit: f64, value: f64) -> Self {
        Self {
            reached: value >= limit,
            message: format!("{figure} {value:.4} is below {limit:.4}: {}", row.line()),
        }
    }
}

fn check_outage(row: &outage::Row, all: &[outage::Row]) -> Vec<Target> {
    const WITH_TOTAL_TIMEOUT: Setting = Setting {
        total_timeout: Some(Duration::from_millis(1500)),
        ..Setting::new(200, 20)
    };
    const BUSY: Setting = Setting::new(280, 20);
    const COMMON: Setting = Setting::new(200, 20);
    if row.policy != PolicyKind::Ours {
        return Vec::new();
    }
    match row.setting {
        BUSY => vec![check_recovery(row, all)],
        COMMON | WITH_TOTAL_TIMEOUT => vec![
            Target::at_most(row, "peak", 1.5, row.peak()),
            Target::at_most(row, "highest peak", 1.7, row.highest_peak()),
            Target::at_most(row, "amplification after", 1.05, row.after()),
            check_recovery(row, all),
        ],
        _ => Vec::new(),
    }
}

/// Checks that the recovery takes at most 10 % longer than without retries.
fn check_recovery(row: &outage::Row, all: &[outage::Row]) -> Target {
    let mut baselines = all.iter().filter(|other| other.policy == PolicyKind::None);
    let baseline = baselines.find(|other| other.setting == row.setting);
    let baseline = baseline.and_then(outage::Row::recovery);
    let limit = 1.1 * baseline.unwrap_or(f64::INFINITY);
    let recovery = row.recovery().unwrap_or(f64::INFINITY);
    Target {
        reached: recovery.is_finite() && recovery <= limit,
        message: format!(
            "recovery {recovery:.1} s is above {limit:.1} s: {}",
            row.line()
        ),
    }
}

fn check_ratelimit(row: &ratelimit::Row) -> Vec<Target> {
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

fn check_random_failures(row: &random_failures::Row) -> Vec<Target> {
    let min = match row.p {
        0.05 => 0.999,
        0.10 => 0.997,
        _ => return Vec::new(),
    };
    match row.policy {
        PolicyKind::Ours => vec![Target::at_least(
            row,
            "share of successes",
            min,
            row.success,
        )],
        _ => Vec::new(),
    }
}

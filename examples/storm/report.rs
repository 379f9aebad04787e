//! The printed results of each experiment: a table, and one machine-readable line for each row.

use crate::{outage, random_failures, ratelimit};

/// One row of a table.
pub(crate) trait Row {
    const TITLE: &'static str;
    const HEADINGS: &'static [&'static str];

    fn cells(&self) -> Vec<String>;

    fn line(&self) -> String;
}

/// Prints the table, then the lines.
pub(crate) fn print_rows<R: Row>(rows: &[R]) {
    println!("{}\n", R::TITLE);
    let mut table = vec![R::HEADINGS.iter().map(ToString::to_string).collect()];
    table.extend(rows.iter().map(Row::cells));
    print_aligned(&table);
    println!();
    for row in rows {
        println!("{}", row.line());
    }
    println!();
}

fn print_aligned(table: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in table {
        let cells = row.iter().enumerate();
        let cells = cells.map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

impl Row for outage::Row {
    const TITLE: &'static str = "An outage: the network holds all packets from 30 s to 40 s (never: not until the end at 240 s)";
    const HEADINGS: &'static [&'static str] = &[
        "requests/s",
        "clients",
        "total timeout",
        "policy",
        "peak amplification (highest)",
        "amplification after",
        "recovery",
    ];

    fn cells(&self) -> Vec<String> {
        let total_timeout = self.setting.total_timeout;
        let (never, runs) = (self.runs_without_recovery(), self.runs.len());
        vec![
            self.setting.rate.to_string(),
            self.setting.clients.to_string(),
            total_timeout.map_or("-".into(), |limit| format!("{} s", limit.as_secs_f64())),
            self.policy.name().into(),
            format!("{:.2} ({:.2})", self.peak(), self.highest_peak()),
            format!("{:.3}", self.after()),
            match self.recovery() {
                Some(seconds) => format!("{seconds:.1} s"),
                None => format!("never, in {never} of {runs} runs"),
            },
        ]
    }

    fn line(&self) -> String {
        let outage::Setting { rate, clients, .. } = self.setting;
        let total_timeout = self.setting.total_timeout;
        format!(
            "storm=outage rate={rate} clients={clients} policy={} peak={:.3} peak_max={:.3} \
             after={:.3} recovery_s={}{}",
            self.policy.name(),
            self.peak(),
            self.highest_peak(),
            self.after(),
            self.recovery()
                .map_or("never".into(), |seconds| format!("{seconds:.1}")),
            total_timeout.map_or(String::new(), |limit| {
                format!(" total_timeout={}", limit.as_secs_f64())
            }),
        )
    }
}

impl Row for ratelimit::Row {
    const TITLE: &'static str =
        "A rate limit: 200 workers, 100 requests/s allowed, 50 or 200 after half the time";
    const HEADINGS: &'static [&'static str] = &[
        "scenario",
        "RateLimit headers",
        "strategy",
        "429s for each success",
        "failed calls",
        "quota used",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.scenario.name().into(),
            format_bool(self.headers).into(),
            self.strategy.name().into(),
            format!("{:.3}", self.rejected_per_ok),
            format!("{:.2} %", 100.0 * self.failed),
            format!("{:.1} %", 100.0 * self.quota_used),
        ]
    }

    fn line(&self) -> String {
        format!(
            "storm=ratelimit scenario={} headers={} strategy={} rejected_per_ok={:.3} \
             failed={:.4} quota_used={:.3}",
            self.scenario.name(),
            format_bool(self.headers),
            self.strategy.name(),
            self.rejected_per_ok,
            self.failed,
            self.quota_used,
        )
    }
}

fn format_bool(value: bool) -> &'static str {
    match value {
        true => "yes",
        false => "no",
    }
}

impl Row for random_failures::Row {
    const TITLE: &'static str = "Independent failures: each attempt fails by chance";
    const HEADINGS: &'static [&'static str] =
        &["failing attempts", "policy", "successes", "amplification"];

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:.0} %", 100.0 * self.p),
            self.policy.name().into(),
            format!("{:.3} %", 100.0 * self.success),
            format!("{:.3}", self.amplification),
        ]
    }

    fn line(&self) -> String {
        format!(
            "storm=independent p={:.2} policy={} success={:.5} amplification={:.3}",
            self.p,
            self.policy.name(),
            self.success,
            self.amplification,
        )
    }
}

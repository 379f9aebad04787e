//! Draws the picture: one panel for each policy in the outage, and one for the rate limit.

use std::{error::Error, fs, ops::Range, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    outage::{self, Setting},
    policies::{PolicyKind, Strategy},
    ratelimit::{self, Scenario},
};

const SIZE: (u32, u32) = (1080, 1160);
const HEADER: u32 = 110;

const ATTEMPTS: RGBColor = RGBColor(230, 120, 20);
const GOODPUT: RGBColor = RGBColor(20, 90, 170);
const CAPACITY: RGBColor = RGBColor(90, 90, 90);
const OUTAGE: RGBColor = RGBColor(150, 150, 150);
const TEXT: RGBColor = RGBColor(40, 40, 40);

const SHOWN: Setting = Setting::new(200, 20);
const SECONDS: Range<f64> = 0.0..240.0;
const PER_SECOND: Range<f64> = 0.0..1000.0;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), Box<dyn Error>>;

pub(crate) fn draw(path: &Path, outage: &[outage::Row], limits: &[ratelimit::Row]) -> DrawResult {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (header, panels) = root.split_vertically(HEADER);
    let panels = panels.split_evenly((3, 2));
    let shown: Vec<_> = outage.iter().filter(|row| row.setting == SHOWN).collect();
    draw_header(shown.first().map_or(0, |row| row.runs.len()), &header)?;
    for (row, panel) in shown.into_iter().zip(&panels) {
        draw_outage(row, panel)?;
    }
    if let Some(panel) = panels.last() {
        let steady = |row: &&ratelimit::Row| row.scenario == Scenario::Steady && !row.headers;
        draw_limits(&limits.iter().filter(steady).collect::<Vec<_>>(), panel)?;
    }
    root.present()?;
    Ok(())
}

/// Draws the title and the legend of all outage panels.
fn draw_header(seeds: usize, area: &Panel<'_>) -> DrawResult {
    let title = "An outage of 10 s, and a rate limit, simulated";
    area.draw(&Text::new(title, (24, 14), text_style(26)))?;
    let setting = format!(
        "Outage: 200 GETs/s from 20 clients, each attempt times out after 1 s. All: means of {seeds} seeds."
    );
    area.draw(&Text::new(setting, (24, 48), text_style(16)))?;

    let swatch = |x: i32| [(x, 82), (x + 26, 98)];
    let line = |x: i32| vec![(x, 90), (x + 26, 90)];
    area.draw(&Rectangle::new(swatch(24), ATTEMPTS.mix(0.35).filled()))?;
    area.draw(&Text::new("attempts sent", (58, 82), text_style(16)))?;
    area.draw(&PathElement::new(line(190), GOODPUT.stroke_width(3)))?;
    area.draw(&Text::new(
        "requests that succeeded",
        (224, 82),
        text_style(16),
    ))?;
    for x in [440, 450, 460] {
        area.draw(&PathElement::new(
            [(x, 90), (x + 6, 90)],
            CAPACITY.stroke_width(1),
        ))?;
    }
    area.draw(&Text::new(
        "what the server can do, 300/s",
        (474, 82),
        text_style(16),
    ))?;
    area.draw(&Rectangle::new(swatch(730), OUTAGE.mix(0.35).filled()))?;
    area.draw(&Text::new(
        "the network holds all packets",
        (764, 82),
        text_style(16),
    ))?;
    Ok(())
}

fn draw_outage(row: &outage::Row, panel: &Panel<'_>) -> DrawResult {
    let end = match row.recovery() {
        Some(seconds) => format!("recovers in {seconds:.0} s"),
        None => "no recovery by 240 s".to_owned(),
    };
    let mut chart = ChartBuilder::on(panel)
        .caption(
            format!("{}: {end}", policy_title(row.policy)),
            text_style(19),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(SECONDS, PER_SECOND)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(OUTAGE.mix(0.3))
        .x_labels(9)
        .y_labels(6)
        .x_desc("time (s)")
        .y_desc("requests/s")
        .x_label_formatter(&|second| format!("{second:.0}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .label_style(text_style(14))
        .axis_desc_style(text_style(15))
        .draw()?;

    let outage = [(30.0, PER_SECOND.start), (40.0, PER_SECOND.end)];
    let outage = Rectangle::new(outage, OUTAGE.mix(0.35).filled());
    chart.draw_series([outage])?;
    let attempts = center_in_seconds(row.mean_by_second(|second| second.attempts));
    let attempts = AreaSeries::new(attempts, 0.0, ATTEMPTS.mix(0.35));
    chart.draw_series(attempts.border_style(ATTEMPTS))?;
    let capacity = [(SECONDS.start, 300.0), (SECONDS.end, 300.0)];
    let capacity = DashedLineSeries::new(capacity, 6, 4, CAPACITY.stroke_width(1));
    chart.draw_series(capacity)?;
    let goodput = center_in_seconds(row.mean_by_second(|second| second.goodput));
    chart.draw_series(LineSeries::new(goodput, GOODPUT.stroke_width(2)))?;
    Ok(())
}

/// Places the figure of each second in the middle of the second.
fn center_in_seconds(figures: Vec<f64>) -> impl Iterator<Item = (f64, f64)> {
    let seconds = figures.into_iter().enumerate();
    seconds.map(|(second, figure)| (second as f64 + 0.5, figure))
}

fn draw_limits(rows: &[&ratelimit::Row], panel: &Panel<'_>) -> DrawResult {
    const MIN_RATIO: f64 = 0.01;
    // A segmented range includes its end.
    let positions = 0..rows.len().saturating_sub(1);
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => rows.get(*index).map_or("", |row| strategy_title(row)),
        _ => "",
    };
    let mut chart = ChartBuilder::on(panel)
        .caption(
            "Rate limit: 200 workers, 100 requests/s allowed",
            text_style(19),
        )
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(positions.into_segmented(), (MIN_RATIO..1000.0).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(OUTAGE.mix(0.3))
        .x_labels(rows.len())
        .y_labels(6)
        .x_desc("strategy")
        .y_desc("429s for each success, log scale")
        .x_label_formatter(&|at| name(at).to_owned())
        .y_label_formatter(&ToString::to_string)
        .label_style(text_style(14))
        .axis_desc_style(text_style(15))
        .draw()?;
    let above = Pos::new(HPos::Center, VPos::Bottom);
    for (index, row) in rows.iter().enumerate() {
        let ratio = row.rejected_per_ok.max(MIN_RATIO);
        let corners = [
            (SegmentValue::Exact(index), MIN_RATIO),
            (SegmentValue::Exact(index + 1), ratio),
        ];
        let mut bar = Rectangle::new(corners, bar_color(row.strategy).mix(0.75).filled());
        bar.set_margin(0, 0, 14, 14);
        chart.draw_series([bar])?;
        let top = (SegmentValue::CenterOf(index), ratio * 1.15);
        let figure = format!("{:.2}", row.rejected_per_ok);
        chart.draw_series([Text::new(figure, top, text_style(15).pos(above))])?;
    }
    Ok(())
}

fn strategy_title(row: &ratelimit::Row) -> &'static str {
    match row.strategy {
        Strategy::Backoff => "backoff",
        Strategy::RetryAfter => "Retry-After",
        Strategy::Tower => "TpsBudget",
        Strategy::Ours => "this crate",
        Strategy::OursGate => "with its gate",
    }
}

fn bar_color(strategy: Strategy) -> RGBColor {
    match strategy {
        Strategy::Ours | Strategy::OursGate => GOODPUT,
        _ => CAPACITY,
    }
}

fn policy_title(policy: PolicyKind) -> &'static str {
    match policy {
        PolicyKind::None => "No retries",
        PolicyKind::Unbudgeted => "Retries without a budget",
        PolicyKind::Tower => "tower::retry, TpsBudget",
        PolicyKind::TowerResilience => "tower-resilience-retry, AIMD budget",
        PolicyKind::Ours => "tower-http-retry, as it comes",
    }
}

fn text_style(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT)
}

//! The report as one HTML page: figures, drawings, settings and machine. It needs no network and no script, and follows light and dark.

use crate::availability::{SLOT_NS, Slot};
use crate::chart::{Axis, Chart, Line, escape, microseconds, short};
use crate::options::Options;
use crate::plan::OpKind;
use crate::report::{Latencies, Report};
use crate::search::{Search, Verdict};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const STYLE: &str = "\
:root{color-scheme:light dark;--page:#fcfcfb;--ink:#16181d;--soft:#5d6470;--grid:#e3e5e8;--card:#f2f3f5;--shade:#e9ebee;--bad:#b3261e;
--s0:#2a6fdb;--s1:#d4620a;--s2:#0f8a5f;--s3:#8a8f98}
@media(prefers-color-scheme:dark){:root{--page:#15171b;--ink:#e8eaed;--soft:#9aa1ac;--grid:#2e323a;--card:#1f2228;--shade:#23262d;
--bad:#ff8a80;--s0:#6ea8ff;--s1:#ff9f4a;--s2:#4fd1a1;--s3:#7d848f}}
body{margin:0 auto;padding:24px 16px 48px;max-width:900px;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:22px;margin:0}h2{font-size:17px;margin:32px 0 8px}p.sub{color:var(--soft);margin:2px 0 20px}
.tiles{display:flex;flex-wrap:wrap;gap:10px}.tile{background:var(--card);border-radius:8px;padding:10px 14px;flex:1 1 120px}
.tile b{display:block;font-size:20px;font-weight:600}.tile span{color:var(--soft);font-size:13px}
.warn{border-left:4px solid var(--bad);background:var(--card);padding:8px 12px;margin:14px 0}.bad{color:var(--bad)}
figure{margin:0;overflow-x:auto}figcaption{font-size:13px;margin:4px 0}.key{margin-right:18px}
.key i{display:inline-block;width:18px;height:0;border-top:3px solid;vertical-align:middle;margin-right:6px}
svg{width:100%;min-width:560px;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.grid{stroke:var(--grid);fill:none}.shade{fill:var(--shade)}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.line{stroke:currentColor}.dot{fill:currentColor}
.line.s3{stroke-dasharray:5 4;stroke-width:1.5}.key i.s3{border-top-style:dashed}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px;width:100%}.scroll{overflow-x:auto}
th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left}table.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere}
table.facts td:first-child{color:var(--soft);width:11em;white-space:nowrap}
";

/// One colour a kind of request, the same in every drawing.
const OP_CLASSES: [&str; 3] = ["s0", "s1", "s2"];

/// The page.
pub fn page(report: &Report, settings: &[(&str, String)], machine: &[(&str, String)]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    let _ = write!(out, "<title>Load on {}</title>\n<style>\n{STYLE}</style></head><body>\n", escape(&report.target));
    let _ = writeln!(out, "<h1>Load on {}</h1>", escape(&report.target));
    let _ = writeln!(out, "<p class=\"sub\">{} · {}</p>", escape(&report.server), utc_now());
    tiles(&mut out, report);
    let warnings = [report.generator_limit(), report.died.clone()];
    for warning in warnings.iter().flatten() {
        let _ = writeln!(out, "<p class=\"warn\">{}</p>", escape(warning));
    }
    if let Some(search) = &report.search {
        search_section(&mut out, search);
    }
    out.push_str("<h2>Latency by percentile</h2>\n");
    out.push_str(&by_percentile(report).figure());
    if !report.course.is_empty() {
        out.push_str("<h2>Latency over time</h2>\n");
        out.push_str(&latency_over_time(report).figure());
        out.push_str("<h2>Rate over time</h2>\n");
        out.push_str(&rate_over_time(report).figure());
        if report.is_cluster {
            out.push_str("<h2>Longest wait each 100 ms</h2>\n");
            out.push_str(&waits_over_time(report).figure());
        }
    }
    op_table(&mut out, report);
    counts(&mut out, report);
    facts(&mut out, "Settings", settings);
    facts(&mut out, "Generator's machine", machine);
    out.push_str("</body></html>\n");
    out
}

fn tiles(out: &mut String, report: &Report) {
    let tally = &report.tally;
    let errors: u64 = tally.errors.values().sum();
    out.push_str("<div class=\"tiles\">\n");
    let mut tile = |value: String, name: &str, is_bad: bool| {
        let class = if is_bad { " class=\"bad\"" } else { "" };
        let _ = writeln!(out, "<div class=\"tile\"><b{class}>{value}</b><span>{name}</span></div>");
    };
    let wanted = report.rate_wanted.map_or("closed loop".to_owned(), |wanted| format!("of {}/s wanted", short(wanted)));
    tile(format!("{}/s", short(report.rate_reached())), &format!("rate, {wanted}"), false);
    for (kind, op) in kinds(report) {
        tile(microseconds(op.quantile_us(0.99)), &format!("{} p99", kind.name()), false);
    }
    tile(errors.to_string(), "errors", errors > 0);
    if tally.checked > 0 {
        tile(
            (tally.wrong + tally.lost).to_string(),
            &format!("wrong or lost of {} judged", short(tally.checked as f64)),
            tally.wrong + tally.lost > 0,
        );
    }
    tile(microseconds(tally.lateness.quantile_us(0.99)), "generator's own lateness, p99", report.generator_limit().is_some());
    out.push_str("</div>\n");
}

fn kinds(report: &Report) -> impl Iterator<Item = (OpKind, &Latencies)> {
    let all = OpKind::ALL.into_iter().zip(&report.tally.ops);
    all.map(|(kind, op)| (kind, &op.latencies)).filter(|(_, latencies)| latencies.count() > 0)
}

/// Up to the percentile that one request in all is above.
fn by_percentile(report: &Report) -> Chart {
    let most = kinds(report).map(|(_, latencies)| latencies.count()).max().unwrap_or(10);
    let nines = (most as f64).log10().clamp(1.0, 7.0);
    let mut lines: Vec<Line> =
        kinds(report).map(|(kind, latencies)| quantiles(latencies, OP_CLASSES[kind as usize], kind.name())).collect();
    if report.rate_wanted.is_some() && report.tally.lateness.count() > 0 {
        let lateness = Line { dots: Vec::new(), ..quantiles(&report.tally.lateness, "s3", "generator's lateness") };
        lines.push(lateness);
    }
    let y = Axis::latency(lines.iter().flat_map(|line| line.points.iter().map(|point| point.1)));
    let x = Axis::percentiles(1.0 - 10f64.powf(-nines));
    Chart { x, y, lines, shade: None, label: "Latency by percentile, a line for each kind of request".into() }
}

fn quantiles(latencies: &Latencies, class: &'static str, name: &str) -> Line {
    const STEPS_A_NINE: u32 = 20;
    let last = ((latencies.count() as f64).log10().clamp(0.0, 7.0) * f64::from(STEPS_A_NINE)) as u32;
    let shares = (0..=last).map(|step| 1.0 - 10f64.powf(-f64::from(step) / f64::from(STEPS_A_NINE)));
    let points = shares.map(|share| (share, latencies.quantile_us(share))).collect();
    let dots = [0.5, 0.9, 0.99, 0.999, 0.9999].iter().filter(|share| latencies.count() as f64 * (1.0 - **share) >= 1.0).map(|&share| {
        let us = latencies.quantile_us(share);
        (share, us, format!("{name} p{}: {}", share * 100.0, microseconds(us)))
    });
    Line { class, name: name.to_owned(), points, dots: dots.collect() }
}

fn latency_over_time(report: &Report) -> Chart {
    let line = |class, name: &str, of: fn(&crate::report::Point) -> f64| {
        let points = report.course.iter().filter(|point| of(point) > 0.0).map(|point| (point.at_s, of(point))).collect();
        Line { class, name: name.to_owned(), points, dots: Vec::new() }
    };
    let lines = vec![
        line("s0", "p50", |point| point.p50_us),
        line("s1", "p99", |point| point.p99_us),
        line("s2", "p99.9", |point| point.p999_us),
        line("s3", "max", |point| point.max_us),
    ];
    let y = Axis::latency(lines.iter().flat_map(|line| line.points.iter().map(|point| point.1)));
    Chart { x: time_axis(report), y, lines, shade: warmup(report), label: "Latency over time: median, p99, p99.9, highest".into() }
}

fn rate_over_time(report: &Report) -> Chart {
    let rates = || report.course.iter().map(|point| (point.at_s, point.rate));
    let mut lines = vec![Line { class: "s0", name: "answers a second".into(), points: rates().collect(), dots: Vec::new() }];
    if let Some(wanted) = report.rate_wanted {
        let points = vec![(0.0, wanted), (report.warmup_s + report.seconds, wanted)];
        lines.push(Line { class: "s3", name: "wanted".into(), points, dots: Vec::new() });
    }
    let errors = report.course.iter().filter(|point| point.errors > 0);
    let dots: Vec<_> = errors.map(|point| (point.at_s, point.rate, format!("{} errors", point.errors))).collect();
    if !dots.is_empty() {
        lines.push(Line { class: "s1", name: "errors here".into(), points: Vec::new(), dots });
    }
    let y = Axis::from_zero(rates().map(|point| point.1).chain(report.rate_wanted), "answers a second");
    Chart { x: time_axis(report), y, lines, shade: warmup(report), label: "Answers a second over time".into() }
}

fn waits_over_time(report: &Report) -> Chart {
    let slots = || report.tally.availability.slots.iter().enumerate().map(|(at, slot)| (at as f64 * SLOT_NS as f64 / 1e9, slot));
    let us = |slot: &Slot| slot.longest_ns as f64 / 1e3;
    let points = slots().filter(|(_, slot)| slot.longest_ns > 0).map(|(at_s, slot)| (at_s, us(slot))).collect();
    let mut lines = vec![Line { class: "s0", name: "longest wait".into(), points, dots: Vec::new() }];
    let says = |slot: &Slot| slot.errors.iter().map(|(kind, count)| format!("{kind}: {count}")).collect::<Vec<_>>().join(", ");
    let dots: Vec<_> = slots().filter(|(_, slot)| !slot.errors.is_empty()).map(|(at_s, slot)| (at_s, us(slot), says(slot))).collect();
    if !dots.is_empty() {
        lines.push(Line { class: "s1", name: "errors here".into(), points: Vec::new(), dots });
    }
    let y = Axis::latency(slots().map(|(_, slot)| us(slot)));
    let last = slots().next_back().map_or(0.0, |(at_s, _)| at_s).max(report.warmup_s + report.seconds);
    let x = Axis::from_zero(std::iter::once(last), "seconds from the start");
    Chart { x, y: Axis { title: "wait", ..y }, lines, shade: warmup(report), label: "Longest wait of each 100 ms".into() }
}

fn time_axis(report: &Report) -> Axis {
    let last = report.course.last().map_or(1.0, |point| point.at_s);
    let axis = Axis::from_zero(std::iter::once(last), "seconds from the start");
    // The last mark may lie behind the end.
    let marks = axis.marks.into_iter().filter(|mark| mark.0 <= last).collect();
    Axis { last, marks, ..axis }
}

fn warmup(report: &Report) -> Option<(f64, f64, &'static str)> {
    (report.warmup_s > 0.0).then_some((0.0, report.warmup_s, "warm-up"))
}

fn search_section(out: &mut String, search: &Search) {
    let bound = microseconds(search.bound_us);
    out.push_str("<h2>Search</h2>\n");
    let limit = search.limit().map_or(String::new(), |limit| format!("; above it: {}", limit.words()));
    let _ = match search.found() {
        Some(rate) => writeln!(out, "<p><b>{}/s</b> is the highest rate at which every p99 stays within {bound}{limit}.</p>", short(rate)),
        None => writeln!(out, "<p>No rate was found at which every p99 stays within {bound}{limit}.</p>"),
    };
    let dots = |holds: bool| {
        let steps = search.steps.iter().filter(|step| (step.verdict == Verdict::Holds) == holds);
        let text = |rate, us, words: &str| format!("{}/s: p99 {}, {words}", short(rate), microseconds(us));
        steps.map(|step| (step.rate_wanted, step.p99_us, text(step.rate_wanted, step.p99_us, step.verdict.words()))).collect()
    };
    let highest = search.steps.iter().map(|step| step.rate_wanted).fold(0.0, f64::max);
    let lines = vec![
        Line { class: "s2", name: "runs that held".into(), points: Vec::new(), dots: dots(true) },
        Line { class: "s1", name: "runs that did not".into(), points: Vec::new(), dots: dots(false) },
        Line {
            class: "s3",
            name: format!("bound {bound}"),
            points: vec![(0.0, search.bound_us), (highest, search.bound_us)],
            dots: Vec::new(),
        },
    ];
    let y = Axis::latency(search.steps.iter().map(|step| step.p99_us).chain([search.bound_us]));
    let x = Axis::from_zero(std::iter::once(highest), "rate wanted, a second");
    let chart = Chart { x, y: Axis { title: "p99", ..y }, lines, shade: None, label: "p99 of each run by its rate".into() };
    out.push_str(&chart.figure());
    out.push_str("<div class=\"scroll\"><table><tr>");
    ["run", "wanted/s", "reached/s", "p99 µs", "lateness p99 µs", ""].iter().for_each(|head| _ = write!(out, "<th>{head}</th>"));
    out.push_str("</tr>\n");
    for (at, step) in search.steps.iter().enumerate() {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.1}</td><td>{:.1}</td><td>{}</td></tr>",
            at + 1,
            step.rate_wanted,
            step.rate_reached,
            step.p99_us,
            step.lateness_p99_us,
            step.verdict.words()
        );
    }
    out.push_str("</table></div>\n");
}

fn op_table(out: &mut String, report: &Report) {
    out.push_str("<h2>Latency in microseconds</h2>\n<div class=\"scroll\"><table><tr>");
    for head in ["", "count", "errors", "p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr>\n");
    let ops = OpKind::ALL.iter().zip(&report.tally.ops).filter(|(_, op)| op.latencies.count() + op.errors > 0);
    let rows = ops.map(|(kind, op)| (kind.name(), op.errors, &op.latencies));
    for (name, errors, latencies) in rows.chain([("generator's lateness", 0, &report.tally.lateness)]) {
        let _ = write!(out, "<tr><td>{name}</td><td>{}</td><td>{errors}</td>", latencies.count());
        for share in [0.5, 0.9, 0.99, 0.999, 0.9999] {
            let _ = write!(out, "<td>{:.1}</td>", latencies.quantile_us(share));
        }
        let _ = writeln!(out, "<td>{:.1}</td></tr>", latencies.max_us());
    }
    out.push_str("</table></div>\n");
}

fn counts(out: &mut String, report: &Report) {
    let tally = &report.tally;
    let mut rows: Vec<(String, String)> = Vec::new();
    rows.push(("rate".into(), format!("{:.0}/s reached over {:.1} s", report.rate_reached(), report.seconds)));
    if let Some(ns) = report.cpu_ns_a_request() {
        rows.push(("generator".into(), format!("{ns:.0} ns of processor time a request, busy {:.0} %", tally.busy_max * 100.0)));
    }
    if tally.checked > 0 {
        rows.push(("check".into(), format!("{} answers judged, {} wrong, {} lost", tally.checked, tally.wrong, tally.lost)));
    }
    for (name, count) in tally.counts() {
        if count > 0 {
            rows.push((name.into(), count.to_string()));
        }
    }
    rows.extend(tally.errors.iter().map(|(kind, count)| (format!("error: {kind}"), count.to_string())));
    rows.extend(tally.findings.iter().map(|(kind, count)| (format!("finding: {kind}"), count.to_string())));
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    facts(out, "Counts", &rows);
}

fn facts(out: &mut String, title: &str, rows: &[(&str, String)]) {
    let _ = writeln!(out, "<h2>{title}</h2>\n<table class=\"facts\">");
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    }
    out.push_str("</table>\n");
}

/// What was asked for.
pub fn settings(options: &Options, report: &Report) -> Vec<(&'static str, String)> {
    let kinds = OpKind::ALL.iter().zip(options.mix.weights).filter(|(_, weight)| *weight > 0);
    let mix: Vec<String> = kinds.map(|(kind, weight)| format!("{}={weight}", kind.name())).collect();
    let load = match (options.find_p99_us, options.rate) {
        (Some(bound), _) => format!("open loop, search for p99 ≤ {bound} µs"),
        (None, Some(rate)) => format!("open loop, {}/s", short(rate)),
        (None, None) if options.fill => "fill: every key once".to_owned(),
        (None, None) => "closed loop".to_owned(),
    };
    let mut rows = vec![
        ("target", options.target.to_string()),
        ("load", load),
        ("mix", mix.join(",")),
        ("keys", format!("{} of {} bytes, {:?}", options.keys, options.key_size, options.dist)),
        ("values", format!("{} bytes", options.value)),
        ("connections", format!("{}, at most {} requests in flight each", report.conns, options.inflight_max())),
        ("threads", format!("{}{}", report.threads, if options.spin { ", spinning" } else { "" })),
        ("time", format!("{} s of warm-up, {} s counted", report.warmup_s, report.seconds)),
        ("seed", options.seed.to_string()),
    ];
    if let Some(cores) = &options.cores {
        rows.push(("pinned to cores", format!("{:?}", cores.0)));
    }
    if let Some(levels) = options.level {
        rows.push(("levels", format!("{levels:?}")));
    }
    if let Some(ttl) = options.ttl {
        rows.push(("time to live", format!("{ttl} ms")));
    }
    rows.push(("command line", std::env::args().skip(1).collect::<Vec<_>>().join(" ")));
    rows
}

/// What the generator runs on.
pub fn machine() -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
    vec![
        ("processor", format!("{cpu}, {cores} cores for this process")),
        ("memory", field(&read("/proc/meminfo"), "MemTotal").unwrap_or_else(|| "unknown".to_owned())),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("clock", read("/sys/devices/system/clocksource/clocksource0/current_clocksource").trim().to_owned()),
        ("loadgen", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
}

/// Year, month and day of a day since 1970, by the proleptic Gregorian calendar: eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Point, Tally};
    use crate::search::Step;
    use clap::Parser;

    fn report() -> Report {
        let mut tally = Tally { answered: 1000, answers: 1100, checked: 910, cpu_ns: 1_000_000, ..Tally::default() };
        (1..=1000u64).for_each(|us| tally.ops[OpKind::Get as usize].latencies.record(us * 1000));
        (1..=20u64).for_each(|us| tally.ops[OpKind::Put as usize].latencies.record(us * 100_000));
        tally.error("odd <script>alert(1)</script>");
        (0..50).for_each(|at| tally.lateness.record(1000 + at));
        let course = (0..30).map(|at| Point {
            at_s: f64::from(at) * 0.2,
            rate: 100.0,
            errors: u64::from(at == 9),
            p50_us: 5.0,
            p99_us: 20.0,
            p999_us: 40.0,
            max_us: 90.0,
        });
        let course = course.collect();
        Report {
            target: "redis://h:1".into(),
            server: "redis 7 & more".into(),
            tally,
            rate_wanted: Some(100.0),
            seconds: 10.0,
            course,
            ..Report::default()
        }
    }

    fn check(page: &str) {
        for tag in ["svg", "figure", "table", "tr", "td", "th", "div", "p", "h2", "body", "html", "text", "span", "style"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        for outside in ["http:", "https:", "src=", "<script", "<link", "@import", "url(", "NaN", "inf"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_page_stands_alone_and_is_well_formed() {
        let options = Options::try_parse_from(["loadgen", "--target", "redis://h:1", "--rate", "100"]).unwrap();
        let mut report = report();
        let page_of = |report: &Report| page(report, &settings(&options, report), &machine());
        let page = page_of(&report);
        check(&page);
        for piece in
            ["get p99", "put p99", "redis 7 &amp; more", "99.9 %", "odd &lt;script&gt;", "prefers-color-scheme:dark", "open loop, 100/s"]
        {
            assert!(page.contains(piece), "{piece}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        let mut search = Search::new(1000.0, 100.0);
        search.judge(Step { rate_wanted: 100.0, rate_reached: 99.0, p99_us: 7.0, lateness_p99_us: 1.0, verdict: Verdict::Holds });
        report.search = Some(search);
        check(&page_of(&report));
        check(&page_of(&Report::default()));
        report.is_cluster = true;
        report.tally.availability.answer(0, 1000);
        report.tally.availability.error(0, 150_000_000, "odd <b>");
        let page = page_of(&report);
        check(&page);
        assert!(page.contains("Longest wait each 100 ms") && page.contains("odd &lt;b&gt;: 1"));
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!([0, 59, 789, 11_016, 20_000].map(civil), [(1970, 1, 1), (1970, 3, 1), (1972, 2, 29), (2000, 2, 29), (2024, 10, 4)]);
    }
}

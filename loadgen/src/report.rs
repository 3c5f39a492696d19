//! What was measured, and how it is shown: a table for people, JSON for scripts (`html` draws it).

use crate::availability::{Availability, SLOT_NS};
use crate::plan::OpKind;
use crate::search::Search;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Latencies above this many nanoseconds count as this many.
pub const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Kinds of errors that are told apart; further ones count as one kind.
const ERROR_KINDS_MAX: usize = 64;

/// Troubles that the table tells one by one.
const TROUBLES_SHOWN_MAX: usize = 8;

/// A histogram of nanoseconds, three digits exact.
#[derive(Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds are constant and right"))
    }
}

impl Latencies {
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("bounds are the same");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that `share` of all do not exceed, in microseconds; 0 where nothing was recorded.
    pub fn quantile_us(&self, share: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(share) as f64 / 1e3 }
    }

    pub fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }
}

/// One kind of request.
#[derive(Clone, Default)]
pub struct OpTally {
    /// From the planned time to the answer; errors are not among them.
    pub latencies: Latencies,
    pub errors: u64,
}

/// What a thread counted. Only requests planned in the counted window are in `ops`.
#[derive(Clone, Default)]
pub struct Tally {
    pub ops: [OpTally; 3],
    pub errors: BTreeMap<String, u64>,
    /// Answers that arrived within the counted window, errors not among them.
    pub answered: u64,
    /// Answers of any kind, the warm-up's too.
    pub answers: u64,
    /// The longest time within the window in which a thread got no answer but errors, in nanoseconds.
    pub longest_gap_ns: u64,
    /// Planned within the window and never sent.
    pub unsent: u64,
    /// Gets that found nothing.
    pub absent: u64,
    /// Sent to a core that does not own the key.
    pub hops: u64,
    pub checked: u64,
    pub wrong: u64,
    pub lost: u64,
    /// Writes of which nobody knows whether they took effect.
    pub unknown: u64,
    /// What was wrong or lost, in words, and how often.
    pub findings: BTreeMap<&'static str, u64>,
    pub reconnects: u64,
    /// The warm-up included.
    pub availability: Availability,
    /// How late requests were handed to the kernel through the generator's own fault.
    pub lateness: Latencies,
    pub cpu_ns: u64,
    pub wall_ns: u64,
    /// The highest share of a core that a thread used.
    pub busy_max: f64,
}

impl Tally {
    pub fn merge(&mut self, other: &Tally) {
        for (mine, theirs) in self.ops.iter_mut().zip(&other.ops) {
            mine.latencies.merge(&theirs.latencies);
            mine.errors += theirs.errors;
        }
        other.errors.iter().for_each(|(kind, count)| *self.errors.entry(kind.clone()).or_default() += count);
        other.findings.iter().for_each(|(kind, count)| *self.findings.entry(kind).or_default() += count);
        self.answered += other.answered;
        self.answers += other.answers;
        self.longest_gap_ns = self.longest_gap_ns.max(other.longest_gap_ns);
        self.unsent += other.unsent;
        self.absent += other.absent;
        self.hops += other.hops;
        self.checked += other.checked;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.unknown += other.unknown;
        self.reconnects += other.reconnects;
        self.availability.merge(&other.availability);
        self.lateness.merge(&other.lateness);
        self.cpu_ns += other.cpu_ns;
        self.wall_ns += other.wall_ns;
        self.busy_max = self.busy_max.max(other.busy_max);
    }

    /// What is shown where it is not 0.
    pub fn counts(&self) -> [(&'static str, u64); 5] {
        [("absent", self.absent), ("unsent", self.unsent), ("unknown", self.unknown), ("hops", self.hops), ("reconnects", self.reconnects)]
    }

    /// Counts an error of a kind.
    pub fn error(&mut self, kind: &str) {
        let is_new = !self.errors.contains_key(kind);
        let kind = if is_new && self.errors.len() >= ERROR_KINDS_MAX { "other errors" } else { kind };
        match self.errors.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.errors.insert(kind.to_owned(), 1)),
        }
    }
}

/// What was measured within a fraction of a second, by the time of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// From the start of the warm-up.
    pub at_s: f64,
    /// Answers a second.
    pub rate: f64,
    pub errors: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// A finished run.
#[derive(Clone, Default)]
pub struct Report {
    pub phase: &'static str,
    pub tally: Tally,
    /// None in a closed loop.
    pub rate_wanted: Option<f64>,
    /// Length of the counted window.
    pub seconds: f64,
    pub conns: usize,
    pub threads: usize,
    pub server_cores: usize,
    pub target: String,
    /// The target has several addresses.
    pub is_cluster: bool,
    /// What the server says it is.
    pub server: String,
    /// Threads never slept: their processor time says nothing.
    pub spun: bool,
    pub warmup_s: f64,
    /// When it began, in milliseconds since 1970; the times of `availability` count from here.
    pub started_unix_ms: u64,
    /// How the run went on, the warm-up included.
    pub course: Vec<Point>,
    /// The search that this run is the last of.
    pub search: Option<Search>,
    /// Why the run ended early.
    pub died: Option<String>,
}

/// Lateness above this at p99 makes the latencies the generator's own.
const LATENESS_US_MAX: f64 = 1000.0;
/// So does less, from here on, where it is half of the latency or more.
const LATENESS_US_NOTED: f64 = 100.0;
/// A thread of a closed loop that is busier than this has no room left. In an open loop lateness is the judge.
const BUSY_MAX: f64 = 0.9;

impl Report {
    pub fn rate_reached(&self) -> f64 {
        if self.seconds > 0.0 { self.tally.answered as f64 / self.seconds } else { 0.0 }
    }

    /// The highest p99 of a kind of request.
    pub fn p99_us(&self) -> f64 {
        self.tally.ops.iter().map(|op| op.latencies.quantile_us(0.99)).fold(0.0, f64::max)
    }

    /// Processor time of the generator a request; None where it spun.
    pub fn cpu_ns_a_request(&self) -> Option<f64> {
        (!self.spun && self.tally.answers > 0).then(|| self.tally.cpu_ns as f64 / self.tally.answers as f64)
    }

    /// Why the generator rather than the server may set the figures.
    pub fn generator_limit(&self) -> Option<String> {
        let late_us = self.tally.lateness.quantile_us(0.99);
        if self.rate_wanted.is_some() {
            let is_late = late_us > LATENESS_US_MAX || (late_us > LATENESS_US_NOTED && late_us > self.p99_us() / 2.0);
            return is_late.then(|| format!("the generator was late: {late_us:.0} µs at p99; give it more --cores or a lower --rate"));
        }
        (self.tally.busy_max > BUSY_MAX)
            .then(|| format!("the generator was busy {:.0} % of the time; give it more --cores", self.tally.busy_max * 100.0))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<5}{:>12}{:>9}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}  µs",
            self.phase, "count", "errors", "p50", "p90", "p99", "p99.9", "p99.99", "max"
        );
        for (kind, op) in OpKind::ALL.iter().zip(&self.tally.ops).filter(|(_, op)| op.latencies.count() + op.errors > 0) {
            let _ = write!(out, "{:<5}{:>12}{:>9}", kind.name(), op.latencies.count(), op.errors);
            for share in [0.5, 0.9, 0.99, 0.999, 0.9999] {
                let _ = write!(out, "{:>11.1}", op.latencies.quantile_us(share));
            }
            let _ = writeln!(out, "{:>11.1}", op.latencies.max_us());
        }
        let reached = self.rate_reached();
        let _ = match self.rate_wanted {
            Some(wanted) => writeln!(out, "rate      wanted {wanted:.0}/s, reached {reached:.0}/s"),
            None => writeln!(out, "rate      reached {reached:.0}/s (closed loop)"),
        };
        let _ = writeln!(
            out,
            "over      {:.1} s, {} connections, {} generator threads, {} server cores ({})",
            self.seconds, self.conns, self.threads, self.server_cores, self.server
        );
        self.table_rest(&mut out);
        self.table_search(&mut out);
        out
    }

    fn table_search(&self, out: &mut String) {
        let Some(search) = &self.search else { return };
        for step in &search.steps {
            let _ = writeln!(
                out,
                "step      {:>9.0}/s reached {:>9.0}/s  p99 {:>9.1} µs  lateness p99 {:>8.1} µs  {}",
                step.rate_wanted,
                step.rate_reached,
                step.p99_us,
                step.lateness_p99_us,
                step.verdict.words()
            );
        }
        let limit = search.limit().map_or(String::new(), |limit| format!("; above: {}", limit.words()));
        let _ = match search.found() {
            Some(rate) => writeln!(out, "found     {rate:.0}/s holds p99 <= {:.0} µs{limit}", search.bound_us),
            None => writeln!(out, "found     no rate that holds p99 <= {:.0} µs{limit}", search.bound_us),
        };
    }

    fn table_rest(&self, out: &mut String) {
        let tally = &self.tally;
        let late = &tally.lateness;
        let _ = writeln!(
            out,
            "lateness  p50 {:.1}, p99 {:.1}, max {:.1} µs; generator busy {:.0} %{}",
            late.quantile_us(0.5),
            late.quantile_us(0.99),
            late.max_us(),
            tally.busy_max * 100.0,
            self.cpu_ns_a_request().map_or(String::new(), |ns| format!(", {ns:.0} ns a request"))
        );
        let _ = writeln!(out, "gap       {:.1} ms without an answer at the longest", tally.longest_gap_ns as f64 / 1e6);
        for (kind, count) in &tally.errors {
            let _ = writeln!(out, "error     {kind}: {count}");
        }
        for (name, count) in tally.counts() {
            if count > 0 {
                let _ = writeln!(out, "{name:<10}{count}");
            }
        }
        self.table_troubles(out);
        if tally.checked + tally.wrong + tally.lost > 0 {
            let _ = writeln!(out, "check     {} answers judged, {} wrong, {} lost", tally.checked, tally.wrong, tally.lost);
        }
        for (finding, count) in &tally.findings {
            let _ = writeln!(out, "finding   {finding}: {count}");
        }
        if let Some(limit) = self.generator_limit() {
            let _ = writeln!(out, "warning   {limit}");
        }
        if let Some(died) = &self.died {
            let _ = writeln!(out, "ended     {died}");
        }
    }

    /// What a caller noticed of the servers' troubles.
    fn table_troubles(&self, out: &mut String) {
        let troubles = self.tally.availability.troubles();
        for trouble in troubles.iter().take(TROUBLES_SHOWN_MAX) {
            let (from_s, ms) = (trouble.from_ns as f64 / 1e9, (trouble.until_ns - trouble.from_ns) as f64 / 1e6);
            let (errors, slow) = (trouble.errors, trouble.slow);
            let _ = writeln!(out, "trouble   {ms:.0} ms from {from_s:.2} s: {errors} errors, {slow} answers over 100 ms");
        }
        if troubles.len() > TROUBLES_SHOWN_MAX {
            let _ = writeln!(out, "trouble   and {} times more", troubles.len() - TROUBLES_SHOWN_MAX);
        }
    }

    /// For scripts.
    pub fn json(&self) -> String {
        let tally = &self.tally;
        let mut out = String::from("{\n");
        let wanted = self.rate_wanted.map_or("null".to_owned(), number);
        let _ = writeln!(out, "  \"phase\": {},\n  \"rate_wanted\": {wanted},", quoted(self.phase));
        let _ = writeln!(out, "  \"rate_reached\": {},\n  \"seconds\": {},", number(self.rate_reached()), number(self.seconds));
        let counts = [
            ("wrong", tally.wrong),
            ("lost", tally.lost),
            ("checked", tally.checked),
            ("absent", tally.absent),
            ("unsent", tally.unsent),
            ("hops", tally.hops),
            ("reconnects", tally.reconnects),
            ("unknown", tally.unknown),
            ("started_unix_ms", self.started_unix_ms),
            ("conns", self.conns as u64),
            ("threads", self.threads as u64),
            ("server_cores", self.server_cores as u64),
        ];
        for (name, count) in counts {
            let _ = writeln!(out, "  \"{name}\": {count},");
        }
        let late = &tally.lateness;
        let _ = writeln!(
            out,
            "  \"lateness\": {{\"p50_us\": {}, \"p99_us\": {}, \"max_us\": {}}},\n  \"busy\": {},",
            number(late.quantile_us(0.5)),
            number(late.quantile_us(0.99)),
            number(late.max_us()),
            number(tally.busy_max)
        );
        let _ = writeln!(out, "  \"longest_gap_ms\": {},", number(tally.longest_gap_ns as f64 / 1e6));
        let _ = writeln!(out, "  \"generator_limit\": {},", self.generator_limit().map_or("null".to_owned(), |text| quoted(&text)));
        let cpu = self.cpu_ns_a_request().map_or("null".to_owned(), number);
        let _ = writeln!(out, "  \"cpu_ns_a_request\": {cpu},");
        let _ = writeln!(out, "  \"target\": {},\n  \"server\": {},", quoted(&self.target), quoted(&self.server));
        let _ = writeln!(out, "  \"find\": {},", self.search.as_ref().map_or("null".to_owned(), search_json));
        let course: Vec<String> = self.course.iter().map(point_json).collect();
        let _ = writeln!(out, "  \"course\": [{}],", course.join(", "));
        let _ = writeln!(out, "  \"availability\": {},", availability_json(&tally.availability));
        let _ = writeln!(out, "  \"died\": {},", self.died.as_ref().map_or("null".to_owned(), |text| quoted(text)));
        let errors: Vec<String> = tally.errors.iter().map(|(kind, count)| format!("{}: {count}", quoted(kind))).collect();
        let _ = writeln!(out, "  \"errors\": {{{}}},", errors.join(", "));
        let findings: Vec<String> = tally.findings.iter().map(|(kind, count)| format!("{}: {count}", quoted(kind))).collect();
        let _ = writeln!(out, "  \"findings\": {{{}}},", findings.join(", "));
        let ops = OpKind::ALL.iter().zip(&tally.ops).filter(|(_, op)| op.latencies.count() + op.errors > 0);
        let ops: Vec<String> = ops.map(|(kind, op)| format!("    {}: {}", quoted(kind.name()), op_json(op))).collect();
        let _ = writeln!(out, "  \"ops\": {{\n{}\n  }}\n}}", ops.join(",\n"));
        out
    }
}

/// A slot has `at_s` and what is not 0 of the rest; `bad_s` is from when to when it was bad.
fn availability_json(availability: &Availability) -> String {
    let slots = availability.slots.iter().enumerate().map(|(at, slot)| {
        let mut out = format!("{{\"at_s\": {:.1}, \"answered\": {}", at as f64 * SLOT_NS as f64 / 1e9, slot.answered);
        for (name, count) in [("slow", slot.slow), ("wrong", slot.wrong), ("lost", slot.lost)] {
            if count > 0 {
                let _ = write!(out, ", \"{name}\": {count}");
            }
        }
        let _ = write!(out, ", \"longest_ms\": {}", number(slot.longest_ns as f64 / 1e6));
        if !slot.errors.is_empty() {
            let errors: Vec<String> = slot.errors.iter().map(|(kind, count)| format!("{}: {count}", quoted(kind))).collect();
            let _ = write!(out, ", \"errors\": {{{}}}", errors.join(", "));
        }
        if let Some((from, until)) = slot.bad_ns {
            let _ = write!(out, ", \"bad_s\": [{}, {}]", number(from as f64 / 1e9), number(until as f64 / 1e9));
        }
        out.push('}');
        out
    });
    let slots: Vec<String> = slots.collect();
    format!("{{\"slot_ms\": {}, \"slots\": [{}]}}", SLOT_NS / 1_000_000, slots.join(", "))
}

fn op_json(op: &OpTally) -> String {
    let mut out = format!("{{\"count\": {}, \"errors\": {}", op.latencies.count(), op.errors);
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)] {
        let _ = write!(out, ", \"{name}_us\": {}", number(op.latencies.quantile_us(share)));
    }
    let _ = write!(out, ", \"max_us\": {}}}", number(op.latencies.max_us()));
    out
}

fn point_json(point: &Point) -> String {
    format!(
        "{{\"at_s\": {}, \"rate\": {}, \"errors\": {}, \"p50_us\": {}, \"p99_us\": {}, \"p999_us\": {}, \"max_us\": {}}}",
        number(point.at_s),
        number(point.rate),
        point.errors,
        number(point.p50_us),
        number(point.p99_us),
        number(point.p999_us),
        number(point.max_us)
    )
}

fn search_json(search: &Search) -> String {
    let steps = search.steps.iter().map(|step| {
        format!(
            "{{\"rate_wanted\": {}, \"rate_reached\": {}, \"p99_us\": {}, \"lateness_p99_us\": {}, \"verdict\": {}}}",
            number(step.rate_wanted),
            number(step.rate_reached),
            number(step.p99_us),
            number(step.lateness_p99_us),
            quoted(step.verdict.words())
        )
    });
    let steps: Vec<String> = steps.collect();
    let rate = search.found().map_or("null".to_owned(), number);
    let limit = search.limit().map_or("null".to_owned(), |limit| quoted(limit.words()));
    format!("{{\"p99_us\": {}, \"rate\": {rate}, \"limit\": {limit}, \"steps\": [{}]}}", number(search.bound_us), steps.join(", "))
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "null".into() }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut tally =
            Tally { answered: 1000, wrong: 2, lost: 1, checked: 910, busy_max: 0.25, longest_gap_ns: 41_500_000, ..Tally::default() };
        (1..=1000u64).for_each(|us| tally.ops[OpKind::Get as usize].latencies.record(us * 1000));
        tally.ops[OpKind::Put as usize].errors = 3;
        tally.error("overloaded \"now\"");
        tally.lateness.record(5_000);
        tally.availability.answer(0, 20_000_000);
        tally.availability.error(50_000_000, 250_000_000, "lost");
        Report { phase: "load", tally, rate_wanted: Some(100.0), seconds: 10.0, conns: 2, threads: 1, server_cores: 2, ..Report::default() }
    }

    #[test]
    fn the_table_shows_each_kind_with_its_percentiles() {
        let table = report().table();
        let get = table.lines().find(|line| line.starts_with("get")).unwrap();
        let cells: Vec<&str> = get.split_whitespace().collect();
        assert_eq!(&cells[..3], &["get", "1000", "0"]);
        let p50: f64 = cells[3].parse().unwrap();
        let p99: f64 = cells[5].parse().unwrap();
        assert!((499.0..502.0).contains(&p50) && (988.0..992.0).contains(&p99), "{get}");
        assert!(table.contains("wanted 100/s, reached 100/s") && table.contains("2 wrong, 1 lost"), "{table}");
        assert!(table.contains("trouble   200 ms from 0.05 s: 1 errors, 0 answers over 100 ms"), "{table}");
        assert!(!table.contains("\ndel"), "kinds that did not occur are left out");
    }

    #[test]
    fn the_json_holds_what_scripts_rely_on() {
        let json = report().json();
        for piece in [
            "\"rate_wanted\": 100.000",
            "\"rate_reached\": 100.000",
            "\"wrong\": 2",
            "\"lost\": 1",
            "\"longest_gap_ms\": 41.500",
            "\"get\": {\"count\": 1000, \"errors\": 0, \"p50_us\": ",
            "\"p90_us\": ",
            "\"p99_us\": ",
            "\"p999_us\": ",
            "\"max_us\": ",
            "\"put\": {\"count\": 0, \"errors\": 3",
            "\"overloaded \\\"now\\\"\": 1",
            "\"availability\": {\"slot_ms\": 100, \"slots\": [{\"at_s\": 0.0, \"answered\": 1, \"longest_ms\": 20.000}, ",
            "{\"at_s\": 0.2, \"answered\": 0, \"longest_ms\": 200.000, \"errors\": {\"lost\": 1}, \"bad_s\": [0.050, 0.250]}",
        ] {
            assert!(json.contains(piece), "{piece} is missing in {json}");
        }
        assert_eq!(json.matches('{').count(), json.matches('}').count());
    }

    #[test]
    fn the_report_says_when_the_generator_is_the_limit() {
        let mut report = report();
        assert_eq!(report.generator_limit(), None);
        report.tally.busy_max = 0.97;
        assert_eq!(report.generator_limit(), None, "an open loop may be busy and on time");
        report.rate_wanted = None;
        assert!(report.table().contains("warning   the generator was busy 97 %"));
        (report.tally.busy_max, report.rate_wanted) = (0.1, Some(100.0));
        (0..100).for_each(|_| report.tally.lateness.record(2_000_000));
        assert!(report.table().contains("warning   the generator was late"));
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let mut tally = Tally::default();
        (0..1000).for_each(|kind| tally.error(&format!("E{kind}")));
        (0..10).for_each(|_| tally.error("E3"));
        assert_eq!((tally.errors.len(), tally.errors["E3"], tally.errors["other errors"]), (ERROR_KINDS_MAX + 1, 11, 936));
    }
}

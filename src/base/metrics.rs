//! A core's figures as plain data, and the two texts made of them: Prometheus' exposition format, and `info`.
//!
//! A core counts in its own plain fields and now and then fills a `Report`, an owned value that is handed to whoever publishes.
//! Nothing here is shared or atomic. What a figure means (its name, help and kind) is a `static Meaning` beside the code that counts.
//! Format: "Text-based format", version 0.0.4, prometheus.io/docs/instrumenting/exposition_formats.

use std::collections::BTreeMap;
use std::fmt::Write;

/// How figures of one name from several cores belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises. Adds up over cores.
    Counter,
    /// A level that adds up over cores: bytes in use, open connections.
    Gauge,
    /// A level of which the greatest core's counts: an age, a lag, a state.
    Peak,
    /// Quantiles of what was measured since the start. They cannot be added up: `info` shows the worst core's.
    Summary,
}

/// What a figure is: one `static` each. The name ends in the unit; a counter's in `_total`.
#[derive(Debug)]
pub struct Meaning {
    /// Without the `ringkv_` in front.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

/// A figure that only rises.
pub const fn counter(name: &'static str, help: &'static str) -> Meaning {
    Meaning { name, help, kind: Kind::Counter }
}

/// A level that adds up over cores.
pub const fn gauge(name: &'static str, help: &'static str) -> Meaning {
    Meaning { name, help, kind: Kind::Gauge }
}

/// A level of which the greatest core's counts.
pub const fn peak(name: &'static str, help: &'static str) -> Meaning {
    Meaning { name, help, kind: Kind::Peak }
}

/// Quantiles of one measured quantity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// How many values were measured.
    pub count: u64,
    /// Their sum, in the unit of the name.
    pub sum: f64,
    /// Ascending (quantile in 0..=1, value).
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(f64),
    Quantiles(Quantiles),
}

#[derive(Clone, Debug)]
struct Sample {
    meaning: &'static Meaning,
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// All figures of one core, or of several.
#[derive(Clone, Debug, Default)]
pub struct Report {
    samples: Vec<Sample>,
}

/// The prefix of every name in Prometheus' text.
pub const PREFIX: &str = "ringkv_";

impl Report {
    pub fn new() -> Report {
        Report::default()
    }

    /// Adds a number. (Counters lose their last bits beyond 2^53, as everything does that Prometheus reads.)
    pub fn number(&mut self, meaning: &'static Meaning, labels: &[(&'static str, &str)], value: f64) {
        assert!(meaning.kind != Kind::Summary, "{} takes quantiles", meaning.name);
        self.push(meaning, labels, Value::Number(value));
    }

    /// Adds an integer.
    pub fn count(&mut self, meaning: &'static Meaning, labels: &[(&'static str, &str)], value: u64) {
        self.number(meaning, labels, value as f64);
    }

    /// Adds quantiles.
    pub fn quantiles(&mut self, meaning: &'static Meaning, labels: &[(&'static str, &str)], value: Quantiles) {
        assert!(meaning.kind == Kind::Summary, "{} is no summary", meaning.name);
        self.push(meaning, labels, Value::Quantiles(value));
    }

    /// Takes in all of `other`, with a label more on each: `("core", "3")`.
    pub fn absorb(&mut self, other: Report, label: (&'static str, &str)) {
        self.samples.extend(other.samples.into_iter().map(|mut sample| {
            sample.labels.insert(0, (label.0, label.1.to_owned()));
            sample
        }));
    }

    /// The sum of a number over all its samples; 0 where there is none.
    pub fn total(&self, name: &str) -> f64 {
        let of_name = self.samples.iter().filter(|sample| sample.meaning.name == name);
        of_name.map(|sample| if let Value::Number(number) = sample.value { number } else { 0.0 }).sum()
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    fn push(&mut self, meaning: &'static Meaning, labels: &[(&'static str, &str)], value: Value) {
        debug_assert!(labels.iter().all(|(name, _)| is_name(name)), "labels of {}", meaning.name);
        debug_assert!(is_name(meaning.name), "{}", meaning.name);
        let labels = labels.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        self.samples.push(Sample { meaning, labels, value });
    }

    /// Prometheus' text: families by name, samples in the order they came.
    pub fn prometheus(&self) -> String {
        let mut families: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            families.entry(sample.meaning.name).or_default().push(sample);
        }
        let mut out = String::with_capacity(self.samples.len() * 64);
        for (name, samples) in families {
            let meaning = samples[0].meaning;
            let _ = writeln!(out, "# HELP {PREFIX}{name} {}", escape(meaning.help, false));
            let _ = writeln!(out, "# TYPE {PREFIX}{name} {}", type_name(meaning.kind));
            for sample in samples {
                expose(&mut out, sample);
            }
        }
        out
    }

    /// One `name:value` a line, by name: cores put together as `Kind` says, other labels behind the name (`ops_total.op=get:12`).
    pub fn info(&self) -> String {
        let mut lines: BTreeMap<String, f64> = BTreeMap::new();
        for sample in &self.samples {
            let mut name = sample.meaning.name.to_owned();
            for (label, text) in sample.labels.iter().filter(|(label, _)| *label != "core") {
                let _ = write!(name, ".{label}={}", text.replace(['\n', '\r', ':'], "_"));
            }
            match &sample.value {
                Value::Number(value) => {
                    let sum = matches!(sample.meaning.kind, Kind::Counter | Kind::Gauge);
                    lines.entry(name).and_modify(|held| *held = if sum { *held + value } else { held.max(*value) }).or_insert(*value);
                }
                Value::Quantiles(quantiles) => {
                    *lines.entry(format!("{name}.count")).or_default() += quantiles.count as f64;
                    for (quantile, value) in &quantiles.points {
                        let held = lines.entry(format!("{name}.{}", percentile(*quantile))).or_default();
                        *held = held.max(*value);
                    }
                }
            }
        }
        lines.iter().fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "{name}:{value}");
            out
        })
    }
}

fn is_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge | Kind::Peak => "gauge",
        Kind::Summary => "summary",
    }
}

/// `0.5` is `p50`, `0.999` is `p999`, `1` is `max`.
fn percentile(quantile: f64) -> String {
    if quantile >= 1.0 {
        return "max".to_owned();
    }
    let digits = format!("{quantile:.5}");
    let digits = digits.trim_start_matches("0.").trim_end_matches('0');
    format!("p{digits:0<2}")
}

fn expose(out: &mut String, sample: &Sample) {
    let name = sample.meaning.name;
    match &sample.value {
        Value::Number(value) => line(out, name, &sample.labels, None, *value),
        Value::Quantiles(quantiles) => {
            for (quantile, value) in &quantiles.points {
                line(out, name, &sample.labels, Some(*quantile), *value);
            }
            line(out, &format!("{name}_sum"), &sample.labels, None, quantiles.sum);
            line(out, &format!("{name}_count"), &sample.labels, None, quantiles.count as f64);
        }
    }
}

fn line(out: &mut String, name: &str, labels: &[(&'static str, String)], quantile: Option<f64>, value: f64) {
    let _ = write!(out, "{PREFIX}{name}");
    let mut pairs: Vec<String> = labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escape(text, true))).collect();
    pairs.extend(quantile.map(|quantile| format!("quantile=\"{quantile}\"")));
    if !pairs.is_empty() {
        let _ = write!(out, "{{{}}}", pairs.join(","));
    }
    let _ = match value {
        value if value.is_nan() => writeln!(out, " NaN"),
        value if value.is_infinite() => writeln!(out, " {}Inf", if value > 0.0 { "+" } else { "-" }),
        value => writeln!(out, " {value}"),
    };
}

fn escape(text: &str, quotes: bool) -> String {
    let plain = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { plain.replace('"', "\\\"") } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    static OPS: Meaning = Meaning { name: "ops_total", help: "Requests answered.", kind: Kind::Counter };
    static LAG: Meaning = Meaning { name: "lag_seconds", help: "How far\nbehind \\ the deadline.", kind: Kind::Peak };
    static LATENCY: Meaning = Meaning { name: "latency_seconds", help: "Time to answer.", kind: Kind::Summary };

    fn core(number: f64) -> Report {
        let mut report = Report::new();
        report.count(&OPS, &[("op", "get")], number as u64);
        report.number(&LAG, &[("namespace", "a\"b\\c\nd")], number / 4.0);
        let points = vec![(0.5, number), (0.999, number * 2.0), (1.0, number * 3.0)];
        report.quantiles(&LATENCY, &[], Quantiles { count: 2, sum: 1.5, points });
        report
    }

    fn node() -> Report {
        let mut node = Report::new();
        node.absorb(core(1.0), ("core", "0"));
        node.absorb(core(2.0), ("core", "1"));
        node
    }

    #[test]
    fn prometheus_text_has_one_head_a_family_and_escapes() {
        let expected = concat!(
            "# HELP ringkv_lag_seconds How far\\nbehind \\\\ the deadline.\n",
            "# TYPE ringkv_lag_seconds gauge\n",
            "ringkv_lag_seconds{core=\"0\",namespace=\"a\\\"b\\\\c\\nd\"} 0.25\n",
            "ringkv_lag_seconds{core=\"1\",namespace=\"a\\\"b\\\\c\\nd\"} 0.5\n",
            "# HELP ringkv_latency_seconds Time to answer.\n",
            "# TYPE ringkv_latency_seconds summary\n",
            "ringkv_latency_seconds{core=\"0\",quantile=\"0.5\"} 1\n",
            "ringkv_latency_seconds{core=\"0\",quantile=\"0.999\"} 2\n",
            "ringkv_latency_seconds{core=\"0\",quantile=\"1\"} 3\n",
            "ringkv_latency_seconds_sum{core=\"0\"} 1.5\n",
            "ringkv_latency_seconds_count{core=\"0\"} 2\n",
            "ringkv_latency_seconds{core=\"1\",quantile=\"0.5\"} 2\n",
            "ringkv_latency_seconds{core=\"1\",quantile=\"0.999\"} 4\n",
            "ringkv_latency_seconds{core=\"1\",quantile=\"1\"} 6\n",
            "ringkv_latency_seconds_sum{core=\"1\"} 1.5\n",
            "ringkv_latency_seconds_count{core=\"1\"} 2\n",
            "# HELP ringkv_ops_total Requests answered.\n",
            "# TYPE ringkv_ops_total counter\n",
            "ringkv_ops_total{core=\"0\",op=\"get\"} 1\n",
            "ringkv_ops_total{core=\"1\",op=\"get\"} 2\n",
        );
        assert_eq!(node().prometheus(), expected);
    }

    #[test]
    fn info_adds_counters_up_and_shows_the_worst_core_of_the_rest() {
        let expected = concat!(
            "lag_seconds.namespace=a\"b\\c_d:0.5\n",
            "latency_seconds.count:4\n",
            "latency_seconds.max:6\n",
            "latency_seconds.p50:2\n",
            "latency_seconds.p999:4\n",
            "ops_total.op=get:3\n",
        );
        assert_eq!(node().info(), expected);
    }

    #[test]
    fn numbers_beyond_numbers_are_spelled_as_prometheus_wants_them() {
        let mut report = Report::new();
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e18].into_iter().for_each(|value| report.number(&LAG, &[], value));
        let text = report.prometheus();
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).map(|line| &line[line.find(' ').unwrap()..]).collect();
        assert_eq!(values, [" NaN", " +Inf", " -Inf", " 1000000000000000000"]);
        assert_eq!([0.5, 0.9, 0.99, 0.05, 0.9999].map(percentile), ["p50", "p90", "p99", "p05", "p9999"]);
    }
}

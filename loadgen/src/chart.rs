//! Line charts as SVG for the HTML report, drawn by hand: colours come from the page's style sheet, so that one drawing serves light and
//! dark, and nothing but text is needed to show it.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// More points than this are thinned, the highest of each group kept.
const POINTS_MAX: usize = 800;

/// How an axis lays its numbers out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    Linear,
    /// By powers of ten.
    Log,
    /// Shares below 1 by their nines: 0.9, 0.99, 0.999 at equal distances.
    Nines,
}

/// An axis from its first to its last number, and the marks on it.
#[derive(Clone, Debug)]
pub struct Axis {
    pub scale: Scale,
    pub first: f64,
    pub last: f64,
    pub marks: Vec<(f64, String)>,
    pub title: &'static str,
}

/// A line: its colour by a class of the style sheet.
pub struct Line {
    pub class: &'static str,
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Points to be dotted, each with what it says when pointed at.
    pub dots: Vec<(f64, f64, String)>,
}

/// A chart.
pub struct Chart {
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// A part of the x axis that is shaded, and its name.
    pub shade: Option<(f64, f64, &'static str)>,
    /// What a screen reader says.
    pub label: String,
}

impl Axis {
    /// Microseconds by powers of ten, around what there is.
    pub fn latency(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) = bounds(values.filter(|value| *value > 0.0), (1.0, 1000.0));
        let (first, last) = ((low * 0.8).log10().floor(), (high * 1.1).log10().ceil());
        let is_wide = last - first > 2.0;
        let mut marks = Vec::new();
        for decade in first as i32..=last as i32 {
            let steps: &[f64] = if is_wide || decade == last as i32 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            marks.extend(steps.iter().map(|step| step * 10f64.powi(decade)).map(|us| (us, microseconds(us))));
        }
        Axis { scale: Scale::Log, first: 10f64.powf(first), last: 10f64.powf(last), marks, title: "latency" }
    }

    /// From 0 to what there is.
    pub fn from_zero(values: impl Iterator<Item = f64>, title: &'static str) -> Axis {
        let (_, high) = bounds(values, (0.0, 1.0));
        let step = round_step(high.max(1e-9) / 7.0);
        let count = (high / step).ceil().max(1.0) as u32;
        let marks = (0..=count).map(|at| f64::from(at) * step).map(|value| (value, short(value))).collect();
        Axis { scale: Scale::Linear, first: 0.0, last: f64::from(count) * step, marks, title }
    }

    /// Percentiles from the median's side of nothing up to `last`.
    pub fn percentiles(last: f64) -> Axis {
        let all = [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
        let more = [(0.999_99, "99.999 %"), (0.999_999, "99.9999 %"), (0.999_999_9, "99.99999 %")];
        let marks = all.iter().chain(&more).filter(|(share, _)| *share <= last + 1e-9).map(|(share, text)| (*share, (*text).to_owned()));
        Axis { scale: Scale::Nines, first: 0.0, last, marks: marks.collect(), title: "percentile" }
    }

    /// From 0 to 1 along the axis.
    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value).max(1e-12).log10(),
        };
        let (first, last) = (scaled(self.first), scaled(self.last));
        ((scaled(value) - first) / (last - first)).clamp(0.0, 1.0)
    }
}

fn bounds(values: impl Iterator<Item = f64>, or: (f64, f64)) -> (f64, f64) {
    let (low, high) = values.filter(|value| value.is_finite()).fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
    if low.is_finite() && high > 0.0 { (low, high) } else { or }
}

/// 1, 2 or 5 times a power of ten, at or above `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|round| *round >= step * 0.999_999).unwrap_or(decade * 10.0)
}

/// A number in few signs: 1.2M, 350k.
pub fn short(value: f64) -> String {
    let (number, unit) = match value {
        v if v >= 999_500.0 => (v / 1e6, "M"),
        v if v >= 1000.0 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = if number >= 100.0 || number == number.round() { 0 } else { 1 + usize::from(number < 10.0) };
    let text = format!("{number:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// A time in few signs.
pub fn microseconds(us: f64) -> String {
    match us {
        us if us >= 999_500.0 => format!("{} s", short(us / 1e6)),
        us if us >= 999.5 => format!("{} ms", short(us / 1e3)),
        us if us >= 0.9995 || us == 0.0 => format!("{} µs", short(us)),
        us => format!("{} ns", short(us * 1e3)),
    }
}

/// Makes text fit for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Chart {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// The chart and above it the names of its lines.
    pub fn figure(&self) -> String {
        let mut out = String::from("<figure><figcaption>");
        for line in &self.lines {
            let _ = write!(out, "<span class=\"key\"><i class=\"{}\"></i>{}</span>", line.class, escape(&line.name));
        }
        let _ = write!(out, "</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(&self.label));
        self.frame(&mut out);
        for line in &self.lines {
            self.line(&mut out, line);
        }
        out.push_str("</svg></figure>\n");
        out
    }

    fn frame(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        if let Some((from, to, name)) = self.shade {
            let (from, to) = (self.x(from), self.x(to));
            let _ = writeln!(
                out,
                "<rect class=\"shade\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                (to - from).max(0.0),
                bottom - TOP
            );
            let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{}\">{name}</text>", from + 5.0, TOP + 14.0);
        }
        for (value, text) in &self.y.marks {
            let y = self.y(*value);
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            let _ = writeln!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 8.0, y + 4.0);
        }
        for (value, text) in &self.x.marks {
            let x = self.x(*value);
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>");
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 18.0);
        }
        let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = writeln!(out, "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - 6.0, self.x.title);
        let turn = format!("transform=\"rotate(-90 14 {middle_y})\"");
        let _ = writeln!(out, "<text x=\"14\" y=\"{middle_y}\" text-anchor=\"middle\" {turn}>{}</text>", self.y.title);
    }

    fn line(&self, out: &mut String, line: &Line) {
        let points = thinned(&line.points);
        if !points.is_empty() {
            let mut path = String::new();
            for (at, (x, y)) in points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if at == 0 { 'M' } else { 'L' }, self.x(*x), self.y(*y));
            }
            let _ = writeln!(out, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
        }
        for (x, y, text) in &line.dots {
            let (x, y) = (self.x(*x), self.y(*y));
            let _ = writeln!(
                out,
                "<circle class=\"dot {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
                line.class,
                escape(text)
            );
        }
    }
}

/// At most `POINTS_MAX` points: the highest of each group, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS_MAX).max(1);
    let highest = |group: &[(f64, f64)]| group.iter().copied().fold(group[0], |best, point| if point.1 > best.1 { point } else { best });
    points.chunks(group).map(highest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 0.5, 7.0, 12.34, 999.0, 1000.0, 1500.0, 350_000.0, 999_999.0, 1_250_000.0, 20e6];
        assert_eq!(numbers.map(short), ["0", "0.5", "7", "12.3", "999", "1k", "1.5k", "350k", "1M", "1.25M", "20M"]);
        assert_eq!([0.2, 1.0, 20.0, 1000.0, 2.5e6].map(microseconds), ["200 ns", "1 µs", "20 µs", "1 ms", "2.5 s"]);
    }

    #[test]
    fn axes_hold_all_they_show() {
        let latency = Axis::latency([3.0, 900.0].into_iter());
        assert_eq!((latency.first, latency.last, latency.marks.len()), (1.0, 1000.0, 4));
        assert!((latency.place(31.6227) - 0.5).abs() < 1e-3);
        let narrow = Axis::latency([200.0, 300.0].into_iter());
        assert!(narrow.marks.iter().any(|(_, text)| text == "200 µs"), "{narrow:?}");
        let rate = Axis::from_zero([1.0, 47_000.0].into_iter(), "rate");
        assert_eq!((rate.last, rate.marks[1].1.as_str()), (50_000.0, "10k"));
        let nines = Axis::percentiles(0.9999);
        assert_eq!(nines.marks.len(), 6);
        assert!((nines.place(0.99) - 0.5).abs() < 1e-9 && (nines.place(0.9) - 0.25).abs() < 1e-9);
        for empty in [Axis::latency(std::iter::empty()), Axis::from_zero(std::iter::empty(), ""), Axis::from_zero([0.0].into_iter(), "")] {
            assert!(empty.last > empty.first && empty.marks.len() > 1, "{empty:?}");
        }
    }

    #[test]
    fn a_chart_is_well_formed_and_keeps_its_peaks() {
        let mut points: Vec<(f64, f64)> = (0..5000).map(|at| (f64::from(at), 10.0)).collect();
        points[3210].1 = 777.0;
        assert!(thinned(&points).len() <= POINTS_MAX && thinned(&points).contains(&(3210.0, 777.0)));
        let dots = vec![(1.0, 2.0, "a < b".to_owned())];
        let line = Line { class: "s0", name: "p99 & more".into(), points, dots };
        let y = Axis::latency([10.0, 777.0].into_iter());
        let chart =
            Chart { x: Axis::from_zero([5000.0].into_iter(), "s"), y, lines: vec![line], shade: Some((0.0, 9.0, "w")), label: "l".into() };
        let figure = chart.figure();
        assert!(figure.contains("p99 &amp; more") && figure.contains("a &lt; b") && !figure.contains("NaN"), "{figure}");
        for tag in ["svg", "figure", "text", "circle", "figcaption"] {
            assert_eq!(figure.matches(&format!("<{tag}")).count(), figure.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}

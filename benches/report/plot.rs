//! Small SVG charts that are readable in a README, on light and on dark ground: bars with their span and goal, and lines.
//! The same figures give the same bytes.

use std::fmt::Write as _;

use super::figure::thousands;

const WIDTH: f64 = 760.0;
const FONT: f64 = 12.0;
/// Strokes differ in dashes as well as in colour.
const STYLE: &str = "<style>\n\
    text{font:12px system-ui,sans-serif;fill:#1f2328}\n\
    .title{font-weight:600}.soft{fill:#59636e}.end{text-anchor:end}.mid{text-anchor:middle}\n\
    .grid{stroke:#d1d9e0}.axis{stroke:#59636e}.span{stroke:#1f2328}.goal{stroke:#cf222e;stroke-width:2}\n\
    .s0{color:#0969da}.s1{color:#bc4c00}.s2{color:#1a7f37}.s3{color:#8250df}.s4{color:#59636e}.s5{color:#bf3989}\n\
    .line{fill:none;stroke:currentColor;stroke-width:2}.dot,.bar{fill:currentColor}\n\
    .s1 .line{stroke-dasharray:7 3}.s2 .line{stroke-dasharray:2 3}.s3 .line{stroke-dasharray:9 3 2 3}\n\
    .s4 .line{stroke-dasharray:4 4}.s5 .line{stroke-dasharray:1 4}\n\
    @media (prefers-color-scheme:dark){\n\
    text{fill:#f0f6fc}.soft{fill:#9198a1}.grid{stroke:#3d444d}.axis{stroke:#9198a1}.span{stroke:#f0f6fc}.goal{stroke:#f85149}\n\
    .s0{color:#4493f8}.s1{color:#f0883e}.s2{color:#3fb950}.s3{color:#ab7df8}.s4{color:#9198a1}.s5{color:#db61a2}}\n\
    </style>\n";

/// One bar: a median, its span, and what was wanted.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) goal: Option<f64>,
}

/// Horizontal bars from zero on; values carry a `×`.
pub(super) fn bars(title: &str, note: &str, bars: &[Bar]) -> String {
    const LEFT: f64 = 290.0;
    const ROW: f64 = 26.0;
    const TOP: f64 = 48.0;
    let right = WIDTH - 60.0;
    let greatest = bars.iter().map(|bar| bar.most.max(bar.goal.unwrap_or(0.0))).fold(1.0, f64::max);
    let steps = steps(greatest);
    let end = steps.last().copied().unwrap_or(greatest);
    let x = |value: f64| LEFT + value / end * (right - LEFT);
    let bottom = TOP + ROW * bars.len() as f64;
    let mut svg = open(title, note, bottom + 30.0);
    for step in &steps {
        let at = x(*step);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"
        );
        let _ =
            writeln!(svg, "<text class=\"soft mid\" x=\"{at:.1}\" y=\"{:.1}\">{step}×</text>", bottom + 16.0);
    }
    for (row, bar) in bars.iter().enumerate() {
        let Bar { label, median, least, most, goal } = bar;
        let (y, height) = (TOP + ROW * row as f64 + 5.0, ROW - 10.0);
        let middle = y + height / 2.0;
        let text = middle + FONT / 3.0;
        let _ = writeln!(
            svg,
            "<text class=\"end\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
            LEFT - 8.0,
            escaped(label)
        );
        let _ = writeln!(
            svg,
            "<g class=\"s0\"><rect class=\"bar\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height}\" rx=\"2\"/></g>",
            x(*median) - LEFT
        );
        let (from, to) = (x(*least), x(*most));
        let _ = writeln!(
            svg,
            "<line class=\"span\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>"
        );
        let mut behind = to;
        if let Some(goal) = goal {
            let at = x(*goal);
            behind = behind.max(at);
            let (top, bottom) = (y - 3.0, y + height + 3.0);
            let _ = writeln!(
                svg,
                "<line class=\"goal\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>"
            );
        }
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{text:.1}\">{median:.2}×</text>", behind + 6.0);
    }
    svg + "</svg>\n"
}

/// A line through points.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// How an axis runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero on.
    Linear,
    /// In powers of ten.
    Log,
}

/// An axis and what it shows.
pub(super) struct Axis {
    pub(super) name: &'static str,
    pub(super) scale: Scale,
}

impl Axis {
    fn ticks(&self, values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
        let greatest = values.clone().fold(f64::MIN_POSITIVE, f64::max);
        if self.scale == Scale::Linear {
            return steps(greatest);
        }
        let least = values.filter(|value| *value > 0.0).fold(greatest, f64::min);
        let (from, to) = (least.log10().floor() as i32, greatest.log10().ceil() as i32);
        (from..=to.max(from + 1)).map(|power| 10_f64.powi(power)).collect()
    }

    /// Where a value stands between the first and the last tick.
    fn share(&self, value: f64, ticks: &[f64]) -> f64 {
        let (first, last) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        if self.scale == Scale::Linear {
            return (value - first) / (last - first);
        }
        (value.max(first).log10() - first.log10()) / (last.log10() - first.log10())
    }
}

/// Lines over two axes, each with its name.
pub(super) fn lines(title: &str, note: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 56.0;
    const BOTTOM: f64 = 300.0;
    const LEGEND: f64 = 200.0;
    let right = WIDTH - LEGEND;
    let points = || lines.iter().flat_map(|line| &line.points);
    let (columns, rows) = (x.ticks(points().map(|(x, _)| *x)), y.ticks(points().map(|(_, y)| *y)));
    let at = |(value, height): (f64, f64)| {
        let across = LEFT + x.share(value, &columns) * (right - LEFT);
        (across, BOTTOM - y.share(height, &rows) * (BOTTOM - TOP))
    };
    let mut svg = open(title, note, BOTTOM + 44.0);
    for row in &rows {
        let (_, height) = at((columns[0], *row));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>"
        );
        let text = height + FONT / 3.0;
        let _ = writeln!(
            svg,
            "<text class=\"soft end\" x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
            LEFT - 8.0,
            tick(*row)
        );
    }
    for column in &columns {
        let (across, _) = at((*column, rows[0]));
        let text = BOTTOM + 16.0;
        let _ =
            writeln!(svg, "<text class=\"soft mid\" x=\"{across:.1}\" y=\"{text}\">{}</text>", tick(*column));
    }
    let _ =
        writeln!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>");
    let (middle, below) = (f64::midpoint(LEFT, right), BOTTOM + 34.0);
    let _ =
        writeln!(svg, "<text class=\"soft mid\" x=\"{middle:.1}\" y=\"{below}\">{}</text>", escaped(x.name));
    let _ = writeln!(
        svg,
        "<text class=\"soft end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        LEFT - 8.0,
        TOP - 10.0,
        escaped(y.name)
    );
    for (index, Line { name, points }) in lines.iter().enumerate() {
        let drawn: Vec<String> = points
            .iter()
            .map(|point| {
                let (across, height) = at(*point);
                format!("{across:.1},{height:.1}")
            })
            .collect();
        let (from, to) = (right + 14.0, right + 44.0);
        let row = TOP + 20.0 * index as f64;
        let _ = writeln!(
            svg,
            "<g class=\"s{}\"><polyline class=\"line\" points=\"{}\"/>",
            index % 6,
            drawn.join(" ")
        );
        // Many points are a line, few are measurements.
        for dot in drawn.iter().filter(|_| drawn.len() <= 12) {
            let (across, height) = dot.split_once(',').unwrap_or_default();
            let _ = writeln!(svg, "<circle class=\"dot\" cx=\"{across}\" cy=\"{height}\" r=\"3\"/>");
        }
        let _ = writeln!(svg, "<polyline class=\"line\" points=\"{from},{row} {to},{row}\"/></g>");
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{:.1}\">{}</text>", to + 8.0, row + FONT / 3.0, escaped(name));
    }
    svg + "</svg>\n"
}

fn open(title: &str, note: &str, height: f64) -> String {
    let (title, note) = (escaped(title), escaped(note));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         role=\"img\" aria-label=\"{title}\">\n{STYLE}\
         <text class=\"title\" x=\"8\" y=\"16\">{title}</text>\n<text class=\"soft\" x=\"8\" y=\"33\">{note}</text>\n"
    )
}

/// Round steps from zero to at least this, about five of them.
fn steps(greatest: f64) -> Vec<f64> {
    let rough = greatest.max(f64::MIN_POSITIVE) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let count = (greatest / step).ceil().max(1.0) as usize;
    // Multiples of a decimal fraction are not exact.
    (0..=count).map(|number| (number as f64 * step * 1e9).round() / 1e9).collect()
}

fn tick(value: f64) -> String {
    if value >= 1000.0 { thousands(value) } else { format!("{value}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_reach_the_end() {
        assert_eq!(steps(2.3), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        assert_eq!(steps(40_000.0), [0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0]);
    }

    #[test]
    fn a_log_axis_has_whole_powers_and_places_values_between_them() {
        let axis = Axis { name: "ms", scale: Scale::Log };
        let ticks = axis.ticks([0.3, 20.0].into_iter());
        assert_eq!(ticks, [0.1, 1.0, 10.0, 100.0]);
        assert!((axis.share(1.0, &ticks) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_text_does_not_end_its_element() {
        let bar = Bar { label: "a < b & c".to_owned(), median: 1.0, least: 1.0, most: 2.0, goal: Some(1.5) };
        let svg = bars("t", "n", &[bar]);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"), "{svg}");
    }
}

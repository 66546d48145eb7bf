//! One figure: what was measured in each round, what its baseline was, and what it was to be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;
use crate::store::On;

/// Names of figures that several scenarios have.
pub(crate) const CPU: &str = "server CPU each";
pub(crate) const RATE: &str = "rate";
pub(crate) const RESIDENT: &str = "resident memory";
pub(crate) const SYNC: &str = "one append of 4 KiB with fdatasync, p99";

/// What a figure counts in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Unit {
    #[serde(rename = "µs")]
    Microseconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "B")]
    Bytes,
    #[serde(rename = "threads")]
    Threads,
    #[serde(rename = "×")]
    Times,
}

impl Unit {
    /// As few digits as say something.
    fn shown(self, value: f64) -> String {
        let (digits, unit) = match self {
            Self::Microseconds => (1, " µs"),
            Self::Milliseconds => (if value < 10.0 { 2 } else { 1 }, " ms"),
            Self::Seconds => (2, " s"),
            Self::PerSecond => return format!("{}/s", thousands(value)),
            Self::Mebibytes => (0, " MiB"),
            Self::Bytes => (0, " B"),
            Self::Threads => (0, " threads"),
            Self::Times => (2, "×"),
        };
        format!("{value:.digits$}{unit}")
    }
}

/// A whole number with a comma at each thousand.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// What a figure wants to be: by itself, or as many times its baseline.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    TimesAtMost(f64),
    TimesAtLeast(f64),
    AtMost(f64),
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) measured: f64,
    pub(crate) baseline: Option<f64>,
}

/// All rounds of one figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) scenario: Scenario,
    pub(crate) on: On,
    /// Under which circumstances: "256 connections".
    pub(crate) case: String,
    /// What was measured.
    pub(crate) what: String,
    pub(crate) unit: Unit,
    /// What the baseline is.
    pub(crate) beside: Option<String>,
    pub(crate) goal: Option<Goal>,
    pub(crate) rounds: Vec<Reading>,
}

impl Figure {
    /// A figure without baseline and goal, and with no rounds yet.
    pub(crate) fn of(scenario: Scenario, on: On, case: &str, what: &str, unit: Unit) -> Self {
        let (case, what) = (case.to_owned(), what.to_owned());
        Self { scenario, on, case, what, unit, beside: None, goal: None, rounds: Vec::new() }
    }

    pub(crate) fn beside(mut self, baseline: &str) -> Self {
        self.beside = Some(baseline.to_owned());
        self
    }

    pub(crate) fn wants(mut self, goal: impl Into<Option<Goal>>) -> Self {
        self.goal = goal.into();
        self
    }

    pub(crate) fn is(&self, scenario: Scenario, on: On, case: &str, what: &str) -> bool {
        (self.scenario, self.on, &*self.case, &*self.what) == (scenario, on, case, what)
    }

    pub(crate) fn measured(&self) -> Spread {
        Spread::over(self.rounds.iter().map(|round| round.measured))
    }

    pub(crate) fn baseline(&self) -> Option<Spread> {
        self.each(|round| round.baseline)
    }

    /// Measured over baseline, of the same round each.
    pub(crate) fn ratio(&self) -> Option<Spread> {
        self.each(|round| Some(round.measured / round.baseline?))
    }

    /// None where a round has no such figure.
    fn each(&self, figure: impl Fn(&Reading) -> Option<f64>) -> Option<Spread> {
        let figures: Option<Vec<f64>> = self.rounds.iter().map(figure).collect();
        figures.filter(|figures| !figures.is_empty()).map(|figures| Spread::over(figures.into_iter()))
    }

    /// What was wanted, and whether it is so.
    pub(crate) fn verdict(&self) -> Option<String> {
        let (wanted, met) = match self.goal? {
            Goal::TimesAtMost(most) => (format!("≤ {most}×"), self.ratio()?.median <= most),
            Goal::TimesAtLeast(least) => (format!("≥ {least}×"), self.ratio()?.median >= least),
            Goal::AtMost(most) => (format!("≤ {}", self.unit.shown(most)), self.measured().median <= most),
        };
        Some(format!("{wanted} {}", if met { "met" } else { "**missed**" }))
    }

    /// Part of a row: case and what, measured, ratio, goal.
    pub(crate) fn short(&self) -> String {
        let Self { case, what, .. } = self;
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{:.2}×", ratio.median));
        let (on, median) = (self.on.shown(), self.unit.shown(self.measured().median));
        format!("{on}, {case}: {what} | {median} | {ratio} | {}", self.verdict().unwrap_or_default())
    }

    /// A row: case, what, measured, baseline, ratio, goal.
    pub(crate) fn row(&self) -> String {
        let baseline = self.baseline().map_or_else(String::new, |spread| self.unit.shown(spread.median));
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
        let verdict = self.verdict().unwrap_or_default();
        let measured = self.measured();
        let span = if self.rounds.len() < 2 {
            String::new()
        } else {
            format!(" [{} – {}]", self.unit.shown(measured.least), self.unit.shown(measured.most))
        };
        let Self { case, what, .. } = self;
        format!(
            "| {}, {case} | {what} | {}{span} | {baseline} | {ratio} | {verdict} |",
            self.on.shown(),
            self.unit.shown(measured.median)
        )
    }
}

/// For whoever watches a run: the last round.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, on, case, what, unit, .. } = self;
        write!(f, "{scenario:?} on {on:?}, {case}: {what}")?;
        let Some(last) = self.rounds.last() else { return Ok(()) };
        write!(f, " {}", unit.shown(last.measured))?;
        let Some(baseline) = last.baseline else { return Ok(()) };
        write!(f, "; baseline {}, × {:.2}", unit.shown(baseline), last.measured / baseline)
    }
}

/// The middle of some figures, and their span.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    fn over(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        let (middle, last) = (figures.len() / 2, figures.len().saturating_sub(1));
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, least: at(0), most: at(last) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, least, most } = self;
        if least == most {
            return write!(f, "{median:.digits$}");
        }
        write!(f, "{median:.digits$} [{least:.digits$}–{most:.digits$}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(rounds: &[(f64, f64)]) -> Figure {
        let mut figure =
            Figure::of(Scenario::Accept, On::Embedded, "64 connections", CPU, Unit::Microseconds);
        let round = |&(measured, baseline)| Reading { measured, baseline: Some(baseline) };
        figure.rounds = rounds.iter().map(round).collect();
        figure
    }

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        let ratio = figure(&[(8.0, 2.0), (2.0, 2.0), (4.0, 2.0), (6.0, 2.0)]).ratio().unwrap();
        assert_eq!(format!("{ratio:.1}"), "2.5 [1.0–4.0]");
        assert_eq!(figure(&[(6.0, 2.0)]).ratio().unwrap().median, 3.0);
    }

    #[test]
    fn a_goal_is_met_by_the_median_of_the_ratios() {
        let met = figure(&[(3.0, 2.0), (30.0, 2.0), (2.0, 2.0)]).wants(Goal::TimesAtMost(1.5));
        assert_eq!(met.verdict().unwrap(), "≤ 1.5× met");
        let missed = figure(&[(3.0, 2.0)]).wants(Goal::TimesAtLeast(3.0));
        assert_eq!(missed.verdict().unwrap(), "≥ 3× **missed**");
        let missed = figure(&[(3.0, 2.0)]).wants(Goal::AtMost(2.0));
        assert_eq!(missed.verdict().unwrap(), "≤ 2.0 µs **missed**");
    }

    #[test]
    fn thousands_are_kept_apart() {
        assert_eq!([thousands(12.0), thousands(1_234_567.0), thousands(100.0)], ["12", "1,234,567", "100"]);
    }
}

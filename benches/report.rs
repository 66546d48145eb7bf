//! The figures: medians with their span, ratios to the baseline, as a table for the README and as JSON.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Times};
use crate::scenario::{Scenario, Size};
use crate::store::On;

/// What chaski wants to cost at most, as CPU per request or delivery divided by the baseline's.
const RATIO_MAX: f64 = 2.0;
/// And an edge on Kafka and Redis.
const KAFKA_RATIO_MAX: f64 = 2.5;
/// What five destinations on Kafka want at most.
const SEAT_MIB_MAX: f64 = 300.0;
/// And what it wants to have in memory at most.
const IDLE_MIB_MAX: f64 = 40.0;
const AFTER_MIB_MAX: f64 = 256.0;

/// One run of one side.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) resident_mib: Option<f64>,
}

impl Sample {
    pub(crate) fn new(count: usize, elapsed: Duration, cpu: Duration) -> Self {
        let count = count as f64;
        Self {
            per_second: count / elapsed.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / count,
            p50_ms: None,
            p99_ms: None,
            resident_mib: None,
        }
    }

    pub(crate) fn mean(a: Self, b: Self) -> Self {
        let each = |a: f64, b: f64| f64::midpoint(a, b);
        let both = |a: Option<f64>, b: Option<f64>| Some(each(a?, b?));
        Self {
            per_second: each(a.per_second, b.per_second),
            cpu_us: each(a.cpu_us, b.cpu_us),
            p50_ms: both(a.p50_ms, b.p50_ms),
            p99_ms: both(a.p99_ms, b.p99_ms),
            resident_mib: both(a.resident_mib, b.resident_mib),
        }
    }
}

/// A run, and the mean of the baseline's runs before and after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) measured: Sample,
    pub(crate) baseline: Sample,
}

impl Round {
    fn cpu_ratio(&self) -> f64 {
        self.measured.cpu_us / self.baseline.cpu_us
    }

    fn rate_ratio(&self) -> f64 {
        self.measured.per_second / self.baseline.per_second
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (measured, baseline) = (&self.measured, &self.baseline);
        write!(f, "{:.0}/s, {:.1} µs", measured.per_second, measured.cpu_us)?;
        write!(f, "; baseline {:.0}/s, {:.1} µs", baseline.per_second, baseline.cpu_us)?;
        write!(f, "; CPU × {:.2}", self.cpu_ratio())
    }
}

/// All rounds of one case.
#[derive(Debug, Serialize)]
pub(crate) struct Case {
    scenario: Scenario,
    on: On,
    at_once: usize,
    /// In each round.
    events: usize,
    cpu_ratio: Spread,
    rate_ratio: Spread,
    rounds: Vec<Round>,
}

/// Resident memory of one gateway.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) events: usize,
    pub(crate) idle_mib: f64,
    pub(crate) after_mib: f64,
    pub(crate) peak_mib: f64,
    pub(crate) seconds: f64,
}

/// Through the edge onto Kafka, and Kafka's own load generator in the same minute.
#[derive(Debug, Serialize)]
pub(crate) struct Published {
    pub(crate) edge_per_second: f64,
    pub(crate) perf_per_second: f64,
}

/// From when a callback was due to its answer and to its delivery: p50 and p99.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) on: On,
    pub(crate) per_second: usize,
    pub(crate) events: usize,
    pub(crate) answered_ms: [f64; 2],
    pub(crate) delivered_ms: [f64; 2],
}

/// A process on Kafka.
#[derive(Debug, Serialize)]
pub(crate) struct Seat {
    pub(crate) destinations: usize,
    /// Delivered to each of them.
    pub(crate) events: usize,
    pub(crate) after_mib: f64,
    pub(crate) peak_mib: f64,
    pub(crate) threads: usize,
}

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    size: Size,
    machine: Machine,
    stolen_percent: f64,
    cases: Vec<Case>,
    pub(crate) published: Vec<Published>,
    pub(crate) latencies: Vec<Latency>,
    pub(crate) memory: Option<Memory>,
    pub(crate) seats: Vec<Seat>,
    #[serde(skip)]
    began: Times,
}

impl Report {
    pub(crate) fn new(size: Size, folder: &Path) -> anyhow::Result<Self> {
        let (machine, began) = (Machine::look(folder)?, Times::now()?);
        let (cases, published, latencies, memory, seats) = Default::default();
        Ok(Self { size, machine, stolen_percent: 0.0, cases, published, latencies, memory, seats, began })
    }

    pub(crate) fn add(&mut self, scenario: Scenario, on: On, at_once: usize, events: usize, round: Round) {
        let known = |case: &Case| (case.scenario, case.on, case.at_once) == (scenario, on, at_once);
        let index = self.cases.iter().position(known).unwrap_or_else(|| {
            let (cpu_ratio, rate_ratio, rounds) = Default::default();
            self.cases.push(Case { scenario, on, at_once, events, cpu_ratio, rate_ratio, rounds });
            self.cases.len() - 1
        });
        let case = &mut self.cases[index];
        case.rounds.push(round);
        case.cpu_ratio = Spread::of(&case.rounds, Round::cpu_ratio);
        case.rate_ratio = Spread::of(&case.rounds, Round::rate_ratio);
    }

    /// Looks at the clock for the last time.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.stolen_percent = Times::now()?.stolen_percent_since(self.began);
        Ok(())
    }

    /// As the README has it.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| | at once | per second | of baseline | CPU µs each | of baseline | p50 / p99 ms | MiB | goal |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for case in &self.cases {
            case.write(&mut text);
        }
        if let Some(memory) = &self.memory {
            let Memory { events, idle_mib, after_mib, peak_mib, seconds } = memory;
            let (idle, after) =
                (goal(*idle_mib, IDLE_MIB_MAX, "MiB"), goal(*after_mib, AFTER_MIB_MAX, "MiB"));
            let _ = writeln!(text, "| memory at rest | | | | | | | {idle_mib:.0} | {idle} |");
            let _ = writeln!(
                text,
                "| memory after {} events, edge to receiver in {seconds:.0} s | | {:.0} | | | | | {after_mib:.0}, peak {peak_mib:.0} | {after} |",
                events,
                *events as f64 / seconds
            );
        }
        for Seat { destinations, events, after_mib, peak_mib, threads } in &self.seats {
            let goal = if *destinations == 5 { goal(*after_mib, SEAT_MIB_MAX, "MiB") } else { String::new() };
            let _ = writeln!(
                text,
                "| memory on Kafka, {destinations} destinations, {events} events to each; {threads} threads | | | | | | | {after_mib:.0}, peak {peak_mib:.0} | {goal} |"
            );
        }
        if !self.latencies.is_empty() {
            text.push_str("\n| by a schedule, counted from when it was due | answered, p50 / p99 ms | delivered, p50 / p99 ms |\n|---|---|---|\n");
        }
        for Latency {
            on, per_second, answered_ms: [answered, late], delivered_ms: [delivered, last], ..
        } in &self.latencies
        {
            let _ = writeln!(
                text,
                "| {}, {per_second}/s | {answered:.1} / {late:.1} | {delivered:.1} / {last:.1} |",
                on.shown()
            );
        }
        if !self.published.is_empty() {
            let of = |figure: fn(&Published) -> f64| Spread::over(self.published.iter().map(figure));
            let _ = writeln!(
                text,
                "\nThrough the edge onto Kafka {:.0}/s; kafka-producer-perf-test, same broker, size and acks, no sender to \
                 answer: {:.0}/s.",
                of(|published| published.edge_per_second),
                of(|published| published.perf_per_second)
            );
        }
        let Machine { cpu, cores, kernel, fsync_us } = &self.machine;
        let _ = write!(
            text,
            "\nMedians [least–most] of alternating runs; {cores} cores ({cpu}), Linux {kernel}, client and server \
             on the same cores; one append of 4 KiB with fdatasync takes {fsync_us:.0} µs on this disk; {:.1} % of \
             the time was stolen by the host.",
            self.stolen_percent
        );
        text
    }
}

impl Case {
    fn write(&self, text: &mut String) {
        let (what, baseline, ratio_max) = match self.scenario {
            Scenario::Accept if self.on == On::Kafka => {
                let what = "new, on Kafka: verified, deduplicated in Redis, acknowledged";
                (what, "bare server: reads, answers 200", Some(KAFKA_RATIO_MAX))
            }
            Scenario::Accept => {
                ("new: verified, deduplicated, synced", "bare server: reads, answers 200", Some(RATIO_MAX))
            }
            Scenario::Duplicate => ("duplicates", "bare server", None),
            Scenario::Forge => ("forged", "bare server: reads, answers 401, closes", None),
            Scenario::Deliver if self.on == On::Kafka => {
                ("deliveries, from Kafka", "bare pooled client", None)
            }
            Scenario::Deliver => ("deliveries", "bare pooled client", Some(RATIO_MAX)),
            Scenario::Publish | Scenario::Latency | Scenario::Memory => ("", "", None),
        };
        let Self { at_once, rounds, cpu_ratio, rate_ratio, .. } = self;
        for (what, side, ratios) in [
            (baseline, (|round: &Round| round.baseline) as fn(&Round) -> Sample, None),
            (what, |round: &Round| round.measured, Some((rate_ratio, cpu_ratio))),
        ] {
            let spread = |figure: fn(&Sample) -> f64| Spread::of(rounds, |round| figure(&side(round)));
            let (rate, cpu) = (spread(|sample| sample.per_second), spread(|sample| sample.cpu_us));
            let latency = Spread::some(rounds, |round| side(round).p50_ms)
                .zip(Spread::some(rounds, |round| side(round).p99_ms))
                .map_or_else(String::new, |(p50, p99)| format!("{:.2} / {:.2}", p50.median, p99.median));
            let resident = Spread::some(rounds, |round| side(round).resident_mib)
                .map_or_else(String::new, |mib| format!("{:.0}", mib.median));
            let (rates, cpus) = ratios.map_or_else(
                || ("1".to_owned(), "1".to_owned()),
                |(rate, cpu)| (format!("{rate:.2}"), format!("**{cpu:.2}**")),
            );
            let goal =
                ratios.and(ratio_max).map_or_else(String::new, |most| goal(cpu_ratio.median, most, "× CPU"));
            let _ = writeln!(
                text,
                "| {what} | {at_once} | {rate:.0} | {rates} | {cpu:.1} | {cpus} | {latency} | {resident} | {goal} |"
            );
        }
    }
}

fn goal(found: f64, most: f64, unit: &str) -> String {
    format!("≤ {most} {unit}: {}", if found <= most { "met" } else { "missed" })
}

/// The middle of some figures, and their span.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> Self {
        Self::over(rounds.iter().map(figure))
    }

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

    /// None where a round has no such figure.
    fn some(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> Option<Self> {
        let all = rounds.iter().all(|round| figure(round).is_some());
        all.then(|| Self::of(rounds, |round| figure(round).unwrap_or(f64::NAN)))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, least, most } = self;
        write!(f, "{median:.digits$} [{least:.digits$}–{most:.digits$}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        let sample = |cpu_us| Sample { cpu_us, ..Sample::new(1, Duration::from_secs(1), Duration::ZERO) };
        let round = |cpu_us| Round { measured: sample(cpu_us), baseline: sample(2.0) };
        let spread = Spread::of(&[round(8.0), round(2.0), round(4.0), round(6.0)], Round::cpu_ratio);
        assert_eq!(format!("{spread:.1}"), "2.5 [1.0–4.0]");
        assert_eq!(Spread::of(&[round(6.0)], Round::cpu_ratio).median, 3.0);
    }
}

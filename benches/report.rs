//! Everything that a run has measured, as it stands in `results.json`, and what is written from it: tables, plots,
//! and how far one gets with so many cores.

mod figure;
mod table;
mod plot;
mod page;
mod capacity;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub(crate) use self::figure::{CPU, Figure, Goal, RATE, RESIDENT, Reading, SYNC, Unit};
use crate::machine::{Machine, Times};
use crate::scenario::{Scenario, Size};
use crate::store::On;

/// What one side of a comparison did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
}

impl Sample {
    pub(crate) fn new(count: usize, elapsed: Duration, cpu: Duration) -> Self {
        let (done, count) = (count as f64, count.max(1) as f64);
        Self { per_second: done / elapsed.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / count }
    }
}

/// A run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    size: Size,
    machine: Machine,
    /// How long it took, and what the host took of it for others.
    seconds: f64,
    stolen_percent: f64,
    figures: Vec<Figure>,
    /// Seconds since receivers went away, and events not delivered: one outage.
    backlog: Vec<(f64, f64)>,
    #[serde(skip)]
    began: Option<(Instant, Times)>,
}

impl Report {
    pub(crate) async fn new(size: Size, folder: &Path) -> anyhow::Result<Self> {
        let (machine, began) = (Machine::look(folder).await?, Some((Instant::now(), Times::now()?)));
        let (seconds, stolen_percent) = Default::default();
        Ok(Self { size, machine, seconds, stolen_percent, figures: Vec::new(), backlog: Vec::new(), began })
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not of this program", file.display()))
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// One more round of a figure.
    pub(crate) fn add(&mut self, figure: Figure, measured: f64, baseline: Option<f64>) {
        let known = self
            .figures
            .iter()
            .position(|known| known.is(figure.scenario, figure.on, &figure.case, &figure.what));
        let index = known.unwrap_or_else(|| {
            self.figures.push(figure);
            self.figures.len() - 1
        });
        self.figures[index].rounds.push(Reading { measured, baseline });
        crate::say(&self.figures[index]);
    }

    pub(crate) fn outage(&mut self, backlog: Vec<(f64, f64)>) {
        self.backlog = backlog;
    }

    /// Looks at the clock for the last time.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        if let Some((begun, times)) = self.began {
            self.seconds = begun.elapsed().as_secs_f64();
            self.stolen_percent = Times::now()?.stolen_percent_since(times);
        }
        Ok(())
    }

    fn figure(&self, scenario: Scenario, on: On, case: &str, what: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.is(scenario, on, case, what))
    }
}

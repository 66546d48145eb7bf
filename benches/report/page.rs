//! The page, the plots and the capacity plan that stand in the tree, written from `results.json` and from nothing else.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::plot::{self, Axis, Bar, Line, Scale};
use super::{CPU, Figure, Report};
use crate::scenario::{self, Scenario};
use crate::store::On;

/// How to repeat it, and how it is done; around the tables.
const HEAD: &str = include_str!("head.md");
const METHOD: &str = include_str!("method.md");

/// Between these stands what the README of the project shows.
const BEGIN: &str = "<!-- figures: written by chaski-bench page -->";
const END: &str = "<!-- end of figures -->";

impl Report {
    /// Every file, by its name under `benches/`.
    fn files(&self) -> Vec<(&'static str, String)> {
        let mut files = vec![("README.md", self.page()), ("CAPACITY.md", self.capacity())];
        files.extend(self.plots().into_iter().map(|(name, _, svg)| (name, svg)));
        files
    }

    /// Writes them, and the part of the project's README that is about figures.
    pub(crate) fn publish(&self, folder: &Path, readme: &Path) -> anyhow::Result<()> {
        for (name, text) in self.files() {
            let file = folder.join(name);
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        let text = fs::read_to_string(readme).with_context(|| format!("reading {}", readme.display()))?;
        let text =
            self.within(&text).with_context(|| format!("{} has no place for figures", readme.display()))?;
        fs::write(readme, text).with_context(|| format!("writing {}", readme.display()))
    }

    /// One table and one plot, between two marks.
    fn within(&self, readme: &str) -> Option<String> {
        let (before, rest) = readme.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}\n{}{END}{after}", self.summary()))
    }

    fn page(&self) -> String {
        let mut page = format!("{HEAD}\n## Figures\n\n{}", self.colophon());
        let plots = self.plots();
        for scenario in Scenario::ALL {
            let Some(table) = self.table(scenario) else { continue };
            page += &format!("\n### {}\n\n{}\n\n", scenario.title(), scenario.explained());
            for (name, _, _) in plots.iter().filter(|(_, of, _)| *of == scenario) {
                page += &format!("![{}]({name})\n\n", scenario.title());
            }
            page += &table;
        }
        page + "\n" + METHOD
    }

    /// Name, the section it belongs to, and the drawing.
    fn plots(&self) -> Vec<(&'static str, Scenario, String)> {
        let mut plots = Vec::new();
        let mut add =
            |name, scenario, svg: Option<String>| plots.extend(svg.map(|svg| (name, scenario, svg)));
        add("plots/cpu.svg", Scenario::Accept, self.cpu_plot());
        add("plots/latency-embedded.svg", Scenario::Latency, self.latency_plot(On::Embedded));
        add("plots/latency-kafka.svg", Scenario::Latency, self.latency_plot(On::Kafka));
        add("plots/outage.svg", Scenario::Outage, self.outage_plot());
        add("plots/growth.svg", Scenario::Growth, self.growth_plot());
        plots
    }

    /// Server CPU beside the baseline, of all scenarios that have one.
    fn cpu_plot(&self) -> Option<String> {
        let bar = |figure: &Figure| {
            let ratio = figure.ratio()?;
            let kind = match figure.scenario {
                Scenario::Accept => "callback",
                Scenario::SlowSync => "callback, slow sync",
                Scenario::Duplicate => "duplicate",
                Scenario::Forge => "forged",
                Scenario::Deliver => "delivery",
                _ => return None,
            };
            let goal = match figure.goal {
                Some(super::Goal::TimesAtMost(most)) => Some(most),
                _ => None,
            };
            let on = if figure.on == On::Kafka { " on Kafka" } else { "" };
            let label = format!("{kind}{on}, {}", figure.case);
            Some(Bar { label, median: ratio.median, least: ratio.least, most: ratio.most, goal })
        };
        let figures = self.figures.iter().filter(|figure| figure.what == CPU);
        let bars: Vec<Bar> = On::BOTH
            .into_iter()
            .flat_map(|on| figures.clone().filter(move |figure| figure.on == on))
            .filter_map(bar)
            .collect();
        let note = "1× is an empty hyper server, or a bare hyper client for deliveries; a line is the span of the rounds, red is the goal";
        (!bars.is_empty()).then(|| {
            plot::bars("Server CPU per callback or delivery, as many times its baseline", note, &bars)
        })
    }

    fn latency_plot(&self, on: On) -> Option<String> {
        let line = |side: &str, quantile: &str| {
            let what = format!("{side}, {quantile}");
            let point = |share: usize| {
                let figure = self.figure(Scenario::Latency, on, &scenario::at_share(share), &what)?;
                Some((share as f64, figure.measured().median))
            };
            let points: Option<Vec<_>> = scenario::SHARES.into_iter().map(point).collect();
            Some(Line { points: points?, name: what })
        };
        let lines = ["answered", "delivered"]
            .into_iter()
            .flat_map(|side| scenario::QUANTILES.into_iter().map(move |(quantile, _)| (side, quantile)));
        let lines: Option<Vec<Line>> = lines.map(|(side, quantile)| line(side, quantile)).collect();
        let title = format!("From when a callback was due to its answer and to its delivery, {}", on.shown());
        let (x, y) =
            (Axis { name: "% of capacity", scale: Scale::Linear }, Axis { name: "ms", scale: Scale::Log });
        Some(plot::lines(
            &title,
            "medians of the rounds; open loop: arrivals wait for nobody",
            &x,
            &y,
            &lines?,
        ))
    }

    fn outage_plot(&self) -> Option<String> {
        let line = Line { name: "not delivered".to_owned(), points: self.backlog.clone() };
        let (x, y) = (
            Axis { name: "seconds since the receiver went away", scale: Scale::Linear },
            Axis { name: "events", scale: Scale::Linear },
        );
        let note = "callbacks arrive at the same rate all the while; the last round";
        (!self.backlog.is_empty()).then(|| plot::lines("Backlog of an outage", note, &x, &y, &[line]))
    }

    fn growth_plot(&self) -> Option<String> {
        let of =
            |figure: &&Figure| figure.scenario == Scenario::Growth && figure.what == scenario::NORMALISED;
        let point = |figure: &Figure| {
            let stored: f64 = figure.case.split(' ').next()?.parse().ok()?;
            Some((stored, figure.measured().median))
        };
        let points: Vec<_> = self.figures.iter().filter(of).filter_map(point).collect();
        let line = Line { name: "a callback".to_owned(), points };
        let (x, y) =
            (Axis { name: "events stored", scale: Scale::Log }, Axis { name: "×", scale: Scale::Linear });
        let title = "Server CPU per callback as the store grows, as many times an empty server's";
        (!line.points.is_empty())
            .then(|| plot::lines(title, "medians of the rounds; flat is right", &x, &y, &[line]))
    }
}

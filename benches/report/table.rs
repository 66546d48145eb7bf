//! The figures as tables: on the terminal after a run, and on the page.

use std::fmt::Write as _;

use super::{Figure, Report, SYNC};
use crate::machine::Machine;
use crate::scenario::{Scenario, Size};
use crate::store::On;

const HEAD: &str =
    "| case | figure | median [least – most] | baseline | ratio | goal |\n|---|---|---|---|---|---|\n";

/// What the baselines are, each once.
fn baselines(figures: &[&Figure]) -> String {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for figure in figures {
        let Some(beside) = figure.beside.as_deref() else { continue };
        match all.iter_mut().find(|(known, _)| *known == beside) {
            Some((_, whats)) if whats.contains(&&*figure.what) => {}
            Some((_, whats)) => whats.push(&figure.what),
            None => all.push((beside, vec![&figure.what])),
        }
    }
    match &*all {
        [] => String::new(),
        [(beside, _)] => format!("\nBaseline: {beside}.\n"),
        several => {
            let each = several.iter().map(|(beside, whats)| format!("- {}: {beside}\n", whats.join("; ")));
            format!("\nBaselines:\n\n{}", each.collect::<String>())
        }
    }
}

impl Report {
    /// A table for each scenario, and what they were measured on.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for scenario in Scenario::ALL {
            if let Some(table) = self.table(scenario) {
                let _ = writeln!(text, "{}\n\n{table}", scenario.title());
            }
        }
        text + &self.colophon()
    }

    /// None if it was not measured.
    pub(super) fn table(&self, scenario: Scenario) -> Option<String> {
        let figures = self.figures.iter().filter(|figure| figure.scenario == scenario);
        let figures: Vec<&Figure> = On::BOTH
            .into_iter()
            .flat_map(|on| figures.clone().filter(move |figure| figure.on == on))
            .collect();
        let rows: String = figures.iter().map(|figure| figure.row() + "\n").collect();
        (!figures.is_empty()).then(|| format!("{HEAD}{rows}{}", baselines(&figures)))
    }

    /// The figures that have goals, in one table, and a plot.
    pub(super) fn summary(&self) -> String {
        let mut text =
            self.colophon() + "\n| | figure | median | beside its baseline | goal |\n|---|---|---|---|---|\n";
        for scenario in Scenario::ALL {
            let of_it = self.figures.iter().filter(|figure| figure.scenario == scenario);
            let mut title = scenario.title();
            for figure in of_it.filter(|figure| figure.goal.is_some()) {
                let _ = writeln!(text, "| {title} | {} |", figure.short());
                title = "";
            }
        }
        text + "\n![Server CPU per callback or delivery, as many times its baseline](benches/plots/cpu.svg)\n"
    }

    /// Where the figures come from.
    pub(super) fn colophon(&self) -> String {
        let Machine { cpu, cores, kernel, fsync_us } = &self.machine;
        let size = match self.size {
            Size::Full => "A full run",
            Size::Quick => "A quick run: for a look, not for a comparison",
            Size::Tiny => "A tiny run: it shows that everything works, and no figure of it means anything",
        };
        // Syncs are looked at more often.
        let rounds = self.figures.iter().filter(|figure| figure.what != SYNC);
        let rounds = rounds.map(|figure| figure.rounds.len()).max().unwrap_or(0);
        let plural = if rounds == 1 { "" } else { "s" };
        format!(
            "{size}, {rounds} round{plural}, {:.0} min; {cores} cores ({cpu}), Linux {kernel}, which load, chaski, receivers, Kafka and \
             Redis share; one append of 4 KiB with fdatasync took {fsync_us:.0} µs on this disk; {:.1} % of the time was stolen \
             by the host.\n",
            (self.seconds / 60.0).ceil(),
            self.stolen_percent
        )
    }
}

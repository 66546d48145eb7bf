//! What so many cores, partitions and bytes carry, computed from the figures: a plan to begin with, no promise.

use std::fmt::Write as _;

use super::figure::thousands;
use super::{CPU, RATE, Report};
use crate::scenario::{self, Scenario};
use crate::store::{On, PARTITIONS, RECORD_BYTES};

/// The part of a core that is planned with.
const BUSY: f64 = 0.6;
/// Destinations that each event goes to.
const DESTINATIONS: f64 = 3.0;
/// Redis: one id and its state, with its place in the table.
const REDIS_ID_BYTES: f64 = 240.0;
/// For how long ids are known: the default, and what a very high rate can afford.
const WINDOWS: [(&str, f64); 2] = [("72 h", 72.0 * 3600.0), ("1 h", 3600.0)];
const REPLICATION: f64 = 3.0;
const RATES: [f64; 4] = [1e3, 1e4, 1e5, 1e6];
const CONNECTIONS: &str = "256 connections";
const TO_ONE: &str = "1 destination";

/// What a plan is made of.
struct Measured {
    on: On,
    accept_us: f64,
    delivery_us: f64,
    end_to_end: f64,
}

impl Report {
    /// Formulas with their figures, then what they give.
    pub(super) fn capacity(&self) -> String {
        let mut page = String::from(HEAD);
        let measured: Option<Vec<Measured>> = On::BOTH.into_iter().map(|on| self.measured(on)).collect();
        let Some(measured) = measured else {
            return page
                + "\nThe results in the tree lack a figure this page needs: run `make bench` in full.\n";
        };
        page += "\n## What one core carries\n\n\
            | | accept *a* | delivery *d* | callbacks/s a core accepts, *u*/*a* | events/s a core accepts and delivers to \
            *k* destinations, *u*/(*a* + *k·d*) |\n|---|---|---|---|---|\n";
        for Measured { on, accept_us, delivery_us, .. } in &measured {
            let accepts = BUSY * 1e6 / accept_us;
            let events = BUSY * 1e6 / (accept_us + DESTINATIONS * delivery_us);
            let _ = writeln!(
                page,
                "| {} | {accept_us:.1} µs | {delivery_us:.1} µs | {} | {} |",
                on.shown(),
                thousands(accepts),
                thousands(events)
            );
        }
        page += "\n## What this machine carried, edge to one receiver\n\n| | events/s |\n|---|---|\n";
        for Measured { on, end_to_end, .. } in &measured {
            let _ = writeln!(page, "| {} | {} |", on.shown(), thousands(*end_to_end));
        }
        let _ = writeln!(
            page,
            "\nOn {} cores that load, receiver, Kafka and Redis share: what a node carries that has this many cores for everything. \
             The embedded store has one writer and one disk: a node is its bound, whatever the cores.",
            self.machine.cores
        );
        page += &self.disk();
        page += &self.at_rates(measured.iter().find(|measured| measured.on == On::Kafka));
        page
    }

    fn measured(&self, on: On) -> Option<Measured> {
        let of =
            |scenario, case: &str, what: &str| Some(self.figure(scenario, on, case, what)?.measured().median);
        Some(Measured {
            on,
            accept_us: of(Scenario::Accept, CONNECTIONS, CPU)?,
            delivery_us: of(Scenario::Deliver, TO_ONE, CPU)?,
            end_to_end: of(Scenario::Latency, scenario::CLOSED_LOOP, RATE)?,
        })
    }

    /// Bytes that the embedded store keeps.
    fn disk(&self) -> String {
        let stored = self.figures.iter().rev().find(|figure| figure.what == scenario::STORED);
        let Some(stored) = stored.map(|figure| figure.measured().median) else { return String::new() };
        let day = 100.0 * 86_400.0 * stored / f64::from(1 << 30);
        format!(
            "\n## Disk, embedded\n\n*s* = {stored:.0} bytes on disk per event (350-byte bodies). At *r* events/s and a retention of \
             *t*: *r·t·s*. 100/s are {day:.1} GiB a day, {:.0} GiB in the 30 days kept by default.\n",
            30.0 * day
        )
    }

    /// Edges, dispatchers, partitions, brokers and Redis.
    fn at_rates(&self, kafka: Option<&Measured>) -> String {
        let Some(Measured { accept_us, delivery_us, .. }) = kafka else { return String::new() };
        let rate_of = |scenario| {
            let figure = self.figures.iter().find(|figure| {
                figure.scenario == scenario && figure.on == On::Kafka && figure.what == RATE
            })?;
            Some((figure.measured().median, figure.baseline()?.median))
        };
        let (Some((delivered, _)), Some((_, produced))) =
            (rate_of(Scenario::Deliver), rate_of(Scenario::Publish))
        else {
            return String::new();
        };
        let per_partition = delivered / f64::from(PARTITIONS);
        let mut page = format!(
            "\n## Kafka and Redis, at a rate *r* to *k* = {DESTINATIONS} destinations\n\n\
             - edge cores = *r·a*/*u*; dispatcher cores = *r·k·d*/*u*\n\
             - partitions = *r*/*p*, where *p* = {} events/s is what one destination's lane took from one of {PARTITIONS} partitions; at least {PARTITIONS}\n\
             - brokers = *r·R*/(*u·b*), where *b* = {} records/s of {RECORD_BYTES} bytes is what kafka-producer-perf-test got into one broker \
             on this machine, and *R* = {REPLICATION} replicas; at least {REPLICATION}\n\
             - Redis = *r·w*·{REDIS_ID_BYTES} bytes for a dedup window *w*\n\n\
             | events/s | edge cores | dispatcher cores | partitions | brokers like this one | Redis, {} | Redis, {} |\n\
             |---|---|---|---|---|---|---|\n",
            thousands(per_partition),
            thousands(produced),
            WINDOWS[0].0,
            WINDOWS[1].0
        );
        for rate in RATES {
            let cores = |us: f64| thousands((rate * us / 1e6 / BUSY).ceil());
            let partitions = (rate / per_partition).ceil().max(f64::from(PARTITIONS));
            let brokers = (rate * REPLICATION / (BUSY * produced)).ceil().max(REPLICATION);
            let redis = WINDOWS.map(|(_, seconds)| bytes(rate * seconds * REDIS_ID_BYTES));
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} |",
                thousands(rate),
                cores(*accept_us),
                cores(DESTINATIONS * delivery_us),
                thousands(partitions),
                thousands(brokers),
                redis[0],
                redis[1]
            );
        }
        page + TAIL
    }
}

const HEAD: &str = "# Capacity\n\n\
    Made by `chaski-bench page` from `results.json`; nothing here is typed by hand. What is planned with: *u* = 60 % of a core, so that a \
    burst and a lost node have room. CPU is what `chaski` itself used; the kernel's part of it is included, other processes' are not. \
    Bodies have 350 bytes. A plan to begin with: measure on your machines with `make bench`, and read the ratios before the rates.\n";

const TAIL: &str = "\nA million events per second is a matter of partitions, brokers and Redis first and of chaski's cores second: ids for the \
    default window of 72 hours do not fit into one Redis, so such a rate takes a window as short as the senders' resends allow, or a \
    Redis cluster. A destination that takes a million requests per second is a system of its own. The broker's figure is that of a broker that \
    shares its cores with everything else here; one of its own carries several times as much.\n";

fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes / 1_048_576.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        assert_eq!([bytes(240e6), bytes(3600e6 * 240.0)], ["228.9 MiB", "804.7 GiB"]);
    }
}

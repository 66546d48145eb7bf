//! Callbacks through the edge onto Kafka, and the records that Kafka's own load generator makes.

use super::edge::Edge;
use super::{Bench, Loads, Scenario};
use crate::report::{Published, Report};
use crate::say;
use crate::store::On;

/// Bytes of a record as chaski publishes it: the body, and its headers.
const RECORD_BYTES: usize = 760;

impl Bench {
    /// The rate at which callbacks become records, and at which Kafka's own program makes records of that size.
    pub(super) async fn publish(&self, load: &Loads, report: &mut Report) -> anyhow::Result<()> {
        let records = self.counts.requests;
        let perf = self.servers().perf_test(records, RECORD_BYTES)?;
        let edge = Edge { scenario: Scenario::Publish, on: On::Kafka, connections: 256 };
        let edge = self.edge(edge, load).await?.per_second;
        say(format_args!("Publish: {edge:.0}/s through the edge, {perf:.0}/s by kafka-producer-perf-test"));
        report.published.push(Published { edge_per_second: edge, perf_per_second: perf });
        Ok(())
    }
}

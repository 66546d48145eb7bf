//! Callbacks through the edge onto Kafka, and the records that Kafka's own load generator makes.

use super::{Bench, CONNECTIONS, Loads, Scenario};
use crate::report::{Figure, RATE, Report, Unit};
use crate::store::{On, RECORD_BYTES};

impl Bench {
    /// The rate at which callbacks become records, and at which Kafka's own program makes records of that size.
    pub(super) async fn publish(&self, load: &Loads, report: &mut Report) -> anyhow::Result<()> {
        let perf = self.servers().perf_test(load.callbacks.count())?;
        let edge = self.edge_rate(On::Kafka, CONNECTIONS, load).await?;
        let case = format!("{CONNECTIONS} connections, records of {RECORD_BYTES} B");
        let figure = Figure::of(Scenario::Publish, On::Kafka, &case, RATE, Unit::PerSecond)
            .beside("kafka-producer-perf-test: same broker, size and acks, no sender to answer");
        report.add(figure, edge, Some(perf));
        Ok(())
    }
}

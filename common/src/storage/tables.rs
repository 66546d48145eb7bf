//! The tables of parked and dead deliveries, events and cursors, and the SQL that both storages share: the
//! embedded one keeps its all in them, the Kafka one its view of the topics.

pub(super) mod deliveries;
pub(super) mod query;
pub(super) mod readers;
pub(super) mod rows;

/// Makes the tables; says what each is for.
pub(super) const SCHEMA: &str = include_str!("tables/schema.sql");

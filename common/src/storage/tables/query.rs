//! Queries that grow by the conditions that were asked for.

use rusqlite::{Connection, ToSql};

use super::rows;
use crate::storage::PAGE_MAX;

/// A query that grows by the conditions that were asked for.
pub(in crate::storage) struct Conditions {
    sql: String,
    parameters: Vec<Box<dyn ToSql + Send>>,
    joint: &'static str,
}

impl Conditions {
    pub(in crate::storage) fn new(sql: &str) -> Self {
        Self { sql: sql.to_owned(), parameters: Vec::new(), joint: " WHERE " }
    }

    /// Adds a condition without a placeholder.
    pub(in crate::storage) fn require(&mut self, condition: &str) {
        self.sql.push_str(self.joint);
        self.sql.push_str(condition);
        self.joint = " AND ";
    }

    /// Adds a condition with one placeholder, if there is a value for it.
    pub(in crate::storage) fn and(&mut self, condition: &str, value: Option<impl ToSql + Send + 'static>) {
        if let Some(value) = value {
            self.require(condition);
            self.parameters.push(Box::new(value));
        }
    }

    /// Runs it with `tail`, whose only placeholder is the limit.
    pub(in crate::storage) fn run<T>(
        mut self,
        connection: &Connection,
        tail: &str,
        limit: usize,
        from_row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.sql.push(' ');
        self.sql.push_str(tail);
        let limit = if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) };
        self.parameters.push(Box::new(i64::try_from(limit).unwrap_or(i64::MAX)));
        self.run_all(connection, "", from_row)
    }

    /// Runs it with `tail`, which has no placeholder, and without a limit: what it counts is bounded.
    pub(in crate::storage) fn run_all<T>(
        mut self,
        connection: &Connection,
        tail: &str,
        from_row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.sql.push(' ');
        self.sql.push_str(tail);
        rows::all(connection, &self.sql, rusqlite::params_from_iter(self.parameters.iter()), from_row)
    }
}

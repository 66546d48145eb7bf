//! `[telemetry]`: who is sent traces, and of how many events.

use super::problem::Reason;
use super::reader::Node;
use super::url::check_url;
use super::{Checker, TelemetryConfig};

/// Where a collector takes traces, behind its base.
const TRACES: &str = "/v1/traces";

impl Checker<'_> {
    pub(super) fn telemetry(&mut self, node: &Node) -> Option<TelemetryConfig> {
        let base = node.text("otlp")?;
        let (at, base) = (node.at("otlp"), base.trim_end_matches('/'));
        let mut refuse = |message: &str, hint: &str| {
            self.report.refuse(&at, Reason::Destination, message, hint);
            None
        };
        if base.contains('?') || base.ends_with(TRACES) {
            let hint = "write the collector's base, like \"http://127.0.0.1:4318\"; /v1/traces is added";
            return refuse("more than the collector's base", hint);
        }
        match check_url(&format!("{base}{TRACES}"), false) {
            Ok(traces) => {
                Some(TelemetryConfig { traces, sampling: node.number("sampling").unwrap_or_default() })
            }
            Err((message, "use https, or set allow_http = true")) => {
                refuse(message, "use https, or a collector on this machine or in its network")
            }
            Err((message, hint)) => refuse(message, hint),
        }
    }
}

//! `[destinations.NAME]`: where to post, what to send there, and when to try again.
//!
//! What a URL may be is in `url`.

use std::sync::Arc;
use std::time::Duration;

use chaski_common::backoff::Schedule;
use chaski_common::secret::Secret;
use chaski_common::storage::Start;
use chaski_dispatcher::destination::{Auth, DestinationSpec, Ordering};

use super::problem::{Place, Reason, nearest};
use super::reader::Node;
use super::source::Sources;
use super::units::spell_duration;
use super::url::check_url;
use super::value::{Entry, Value, shown};
use super::{Checker, environment};

/// Most bytes of an event pattern.
const PATTERN_BYTES_MAX: usize = 256;

impl Checker<'_> {
    pub(super) fn destinations(
        &mut self,
        nodes: &[(String, Node)],
        sources: &Sources,
        retention: Duration,
    ) -> Vec<DestinationSpec> {
        if nodes.is_empty() {
            let nowhere = Place { line: 0, key: "destinations".to_owned() };
            self.report.warn(&nowhere, "no destination is configured: events are kept and go nowhere");
        }
        nodes.iter().filter_map(|(name, node)| self.destination(name, node, sources, retention)).collect()
    }

    fn destination(
        &mut self,
        name: &str,
        node: &Node,
        sources: &Sources,
        retention: Duration,
    ) -> Option<DestinationSpec> {
        // All parts are read before any may end the reading, so that all their problems are found.
        let url = self.url(node);
        let routed = self.routed(node, sources);
        let events = self.events(node);
        let signing = self.signing(node, sources);
        let auth = self.auth(node.section("auth"));
        let retry = self.retry(node.section("retry"), retention);
        let start = self.start(node);
        Some(DestinationSpec {
            name: name.into(),
            url: url?,
            environment: environment(node),
            sources: routed,
            known_sources: sources.all().collect(),
            events,
            signing,
            auth,
            ordering: if node.text("ordering").as_deref() == Some("key") {
                Ordering::Key
            } else {
                Ordering::None
            },
            concurrency: node.count("concurrency"),
            rate_per_second: node.number("rate"),
            timeout: node.duration("timeout"),
            retry: retry?,
            start,
            // Whoever may write this file may name a private address.
            allow_private: true,
        })
    }

    fn url(&mut self, node: &Node) -> Option<http::Uri> {
        if !self.need(node, "url", "write for example url = \"https://orders.example/hooks\"") {
            return None;
        }
        match check_url(&node.text("url")?, node.flag("allow_http")) {
            Ok(url) => Some(url),
            Err((message, hint)) => {
                self.report.refuse(&node.at("url"), Reason::Destination, message, hint);
                None
            }
        }
    }

    fn routed(&mut self, node: &Node, sources: &Sources) -> Vec<Arc<str>> {
        let environment = environment(node);
        let Some(listed) = node.texts("sources") else {
            let all = sources.of_environment(environment);
            if all.is_empty() && sources.names().next().is_some() {
                self.report
                    .warn(node.place(), format!("no source is {}: it takes nothing", environment.name()));
            }
            return all;
        };
        let mut routed: Vec<Arc<str>> = Vec::new();
        if listed.is_empty() {
            self.report.refuse(
                &node.at("sources"),
                Reason::Range,
                "an empty list takes nothing",
                "leave it out to take all",
            );
        }
        for entry in listed {
            let at = Place { line: entry.line, ..node.at("sources") };
            let name = entry.text.as_str();
            match sources.environment_of(name) {
                None => {
                    let hint = match nearest(name, sources.names()) {
                        Some(near) => format!("did you mean \"{near}\"?"),
                        None => format!("configured: {}", sources.names().collect::<Vec<_>>().join(", ")),
                    };
                    self.report.refuse(
                        &at,
                        Reason::Destination,
                        format!("there is no source {name:?}"),
                        hint,
                    );
                }
                Some(its) if its != environment => {
                    let message = format!(
                        "source {name:?} is {}, this destination is {}",
                        its.name(),
                        environment.name()
                    );
                    self.report.refuse(
                        &at,
                        Reason::Destination,
                        message,
                        "set environment to the same on both",
                    );
                }
                Some(_) if routed.iter().any(|known| &**known == name) => {
                    self.report.refuse(
                        &at,
                        Reason::Duplicate,
                        format!("source {name:?} is listed twice"),
                        "",
                    );
                }
                Some(_) => routed.push(name.into()),
            }
        }
        routed
    }

    fn events(&mut self, node: &Node) -> Vec<String> {
        let listed = node.texts("events").unwrap_or_default();
        if node.has("events") && listed.is_empty() {
            self.report.refuse(
                &node.at("events"),
                Reason::Range,
                "an empty list takes nothing",
                "leave it out to take all",
            );
        }
        for entry in &listed {
            let literal = entry.text.strip_suffix('*').unwrap_or(&entry.text);
            if entry.text.is_empty() || entry.text.len() > PATTERN_BYTES_MAX || literal.contains('*') {
                let at = Place { line: entry.line, ..node.at("events") };
                self.report.refuse(
                    &at,
                    Reason::Range,
                    format!("{}: not an event pattern", shown(&entry.text)),
                    "write \"cip.paid\", or \"cip.*\" with one * at the end",
                );
            }
        }
        listed.into_iter().map(|entry| entry.text).collect()
    }

    fn signing(&mut self, node: &Node, sources: &Sources) -> Vec<Secret> {
        let at = node.at("secret");
        let references = node.texts("secret").unwrap_or_default();
        let secrets = self.rotating(&at, &references);
        for (index, secret) in &secrets {
            let Entry { line, text } = &references[*index];
            let at = Place { line: *line, ..at.clone() };
            if self.signs(&at, text, secret) && sources.uses(secret) {
                self.report
                    .warn(&at, "a source uses the same secret: this receiver could sign as that sender");
            }
        }
        secrets.into_iter().map(|(_, secret)| secret).collect()
    }

    fn auth(&mut self, node: &Node) -> Option<Auth> {
        let (basic, header) = (node.section("basic"), node.section("header"));
        let ways = [node.has("bearer"), basic.given, header.given].into_iter().filter(|given| *given).count();
        if ways > 1 {
            self.report.refuse(
                node.place(),
                Reason::Range,
                "more than one credential",
                "keep one of bearer, basic and header",
            );
        }
        if node.is_empty() && node.given {
            let hint = "write { bearer = \"env:NAME\" }, { basic = { user, password } } or { header = { name, value } }";
            self.report.refuse(node.place(), Reason::Missing, "no credential", hint);
        }
        if let Some(reference) = node.text("bearer") {
            return self.credential(node, "bearer", &reference).map(Auth::Bearer);
        }
        if basic.given {
            let user =
                self.need(basic, "user", "write the user's name").then(|| basic.text("user")).flatten();
            let password =
                self.need(basic, "password", "write \"env:NAME\"").then(|| basic.text("password")).flatten();
            let password = password.and_then(|reference| self.credential(basic, "password", &reference));
            let user = user?;
            if user.contains(':') || user.chars().any(char::is_control) {
                self.report.refuse(
                    &basic.at("user"),
                    Reason::Header,
                    "a user's name has no colon and no line break",
                    "",
                );
                return None;
            }
            return Some(Auth::Basic { user, password: password? });
        }
        if header.given {
            let name = self
                .need(header, "name", "write for example \"x-api-key\"")
                .then(|| self.header_name(header))
                .flatten();
            let value =
                self.need(header, "value", "write \"env:NAME\"").then(|| header.text("value")).flatten();
            let value = value.and_then(|reference| self.credential(header, "value", &reference));
            return Some(Auth::Header { name: name?, value: value? });
        }
        None
    }

    fn credential(&mut self, node: &Node, key: &str, reference: &str) -> Option<Secret> {
        let at = node.at(key);
        let secret = self.secret(&at, reference)?;
        self.header_text(&at, &secret)
    }

    fn header_name(&mut self, node: &Node) -> Option<http::HeaderName> {
        const OURS: &[&str] = &[
            "host",
            "content-length",
            "content-type",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "expect",
            "idempotency-key",
            "traceparent",
            "tracestate",
            "date",
            "user-agent",
        ];
        const PREFIXES_OURS: &[&str] = &["webhook-", "ce-", "chaski-", "proxy-"];
        let text = node.text("name")?;
        let message = match text.parse::<http::HeaderName>() {
            Err(_) => "not a header name",
            Ok(name)
                if OURS.contains(&name.as_str())
                    || PREFIXES_OURS.iter().any(|ours| name.as_str().starts_with(ours)) =>
            {
                "this header is set by chaski or by HTTP itself"
            }
            Ok(name) => return Some(name),
        };
        self.report.refuse(&node.at("name"), Reason::Header, message, "take another, like \"x-api-key\"");
        None
    }

    fn retry(&mut self, node: &Node, retention: Duration) -> Option<Schedule> {
        if node.has_wrong() {
            return None;
        }
        let give_up_after = node.duration("give_up_after");
        let mut refuse = |at: Place, message: String, hint: &str| {
            self.report.refuse(&at, Reason::Range, message, hint);
            None
        };
        let [given_up, kept] = [give_up_after, retention].map(spell_duration);
        if give_up_after > retention {
            let message = format!("{given_up} is longer than storage.retention ({kept})");
            refuse(node.at("give_up_after"), message, "raise storage.retention or give up earlier");
        }
        let Some(Value::Durations(delays)) = node.value("schedule") else {
            let growing = Schedule::growing(
                node.duration("first"),
                node.number("factor").unwrap_or(1.0),
                node.duration("cap"),
                give_up_after,
            );
            return growing.map_or_else(|error| refuse(node.place().clone(), error.to_string(), ""), Some);
        };
        for key in ["first", "factor", "cap"].into_iter().filter(|key| node.has(key)) {
            refuse(
                node.at(key),
                "given beside a schedule".to_owned(),
                "keep the schedule, or first, factor and cap",
            );
        }
        let sum = delays.iter().fold(Duration::ZERO, |sum, delay| sum.saturating_add(*delay));
        let shown = spell_duration(sum);
        if sum > give_up_after {
            let message = format!("sums to {shown}, but gives up after {given_up}: its end is never reached");
            return refuse(node.at("schedule"), message, "raise give_up_after or shorten the schedule");
        }
        let listed = Schedule::listed(delays, give_up_after);
        listed.map_or_else(|error| refuse(node.at("schedule"), error.to_string(), ""), Some)
    }

    fn start(&mut self, node: &Node) -> Start {
        match node.text("start").unwrap_or_default().as_str() {
            "now" => Start::Now,
            "beginning" => Start::Beginning,
            text => match text.parse() {
                Ok(time) => Start::At(time),
                Err(_) => {
                    let hint = "write \"now\", \"beginning\", or a time like \"2026-01-31T00:00:00Z\"";
                    self.report.refuse(&node.at("start"), Reason::Range, "not a place in history", hint);
                    Start::Now
                }
            },
        }
    }
}

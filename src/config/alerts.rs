//! `[alerts]`: who is told, and from when on something is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use chaski_common::secret::Secret;

use super::problem::{Place, Reason, nearest};
use super::reader::Node;
use super::url::check_url;
use super::value::shown;
use super::{Checker, Config, SourceRules, weakness};
use crate::alerts::{AlertsConfig, Condition, EmailSpec, Kind, ReceiverSpec, Rules, SmtpTls};

/// Most receivers: each has a task and a queue of its own.
const RECEIVERS_MAX: usize = 32;
/// Most people on one mail.
const TO_MAX: usize = 32;

/// What each kind reads beside `kind`.
const KEYS: &[(&str, &[&str])] = &[
    ("webhook", &["url", "secret"]),
    ("slack", &["url"]),
    ("dingtalk", &["url", "secret"]),
    ("feishu", &["url", "secret"]),
    ("wecom", &["url"]),
    ("email", &["server", "tls", "from", "to", "user", "password"]),
];

impl Checker<'_> {
    pub(super) fn alerts(
        &mut self,
        node: &Node,
        sources: &BTreeMap<Arc<str>, SourceRules>,
        destinations: Vec<Arc<str>>,
    ) -> AlertsConfig {
        let rules = Rules {
            sources: sources.iter().map(|(name, rules)| (Arc::clone(name), rules.silence)).collect(),
            destinations,
            ignored: self.ignored(node),
            failures_in_a_row: node.integer("failures_in_a_row"),
            refused_signatures: node.integer("refused_signatures"),
            refused_share: node.number("refused_signatures_share").unwrap_or_default(),
            oldest_unsettled: node.duration("oldest_unsettled"),
            breaker_open: node.duration("breaker_open"),
            degraded: node.duration("degraded"),
            disk_free_bytes: node.integer("disk_free"),
            clock_offset: node.duration("clock_offset"),
        };
        let receivers = node.section("receivers");
        if receivers.each.len() > RECEIVERS_MAX {
            let message = format!("more than {RECEIVERS_MAX} receivers");
            self.report.refuse(receivers.place(), Reason::Range, message, "let one of them pass it on");
        }
        if receivers.each.is_empty() && rules.sources.values().any(Option::is_some) {
            self.report.warn(receivers.place(), "a source has a silence, and nobody is told of it");
        }
        AlertsConfig {
            group: node.duration("group"),
            every: node.duration("every"),
            repeat: node.duration("repeat"),
            rules,
            receivers: receivers.each.iter().filter_map(|(name, node)| self.receiver(name, node)).collect(),
        }
    }

    fn ignored(&mut self, node: &Node) -> Vec<Condition> {
        let mut ignored = Vec::new();
        for entry in node.texts("ignore").unwrap_or_default() {
            let names = || Condition::ALL.iter().map(|condition| condition.name());
            match Condition::ALL.iter().find(|condition| condition.name() == entry.text) {
                Some(condition) => ignored.push(*condition),
                None => {
                    let hint = match nearest(&entry.text, names()) {
                        Some(near) => format!("did you mean \"{near}\"?"),
                        None => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
                    };
                    let at = Place { line: entry.line, ..node.at("ignore") };
                    self.report.refuse(
                        &at,
                        Reason::Range,
                        format!("{}: no alert has this name", shown(&entry.text)),
                        hint,
                    );
                }
            }
        }
        ignored
    }

    fn receiver(&mut self, name: &str, node: &Node) -> Option<ReceiverSpec> {
        if !self.need(node, "kind", "write for example kind = \"slack\"") {
            return None;
        }
        let kind = node.text("kind")?;
        let (_, keys) = KEYS.iter().find(|(known, _)| *known == kind)?;
        for key in KEYS.iter().flat_map(|(_, keys)| *keys) {
            if node.writes(key) && !keys.contains(key) {
                let (message, hint) = (format!("not of a receiver of kind {kind}"), "leave it out");
                self.report.refuse(&node.at(key), Reason::Range, message, hint);
            }
        }
        let kind = if kind == "email" {
            Kind::Email(self.email(node)?)
        } else {
            let secret = node.has("secret").then(|| self.receiver_secret(&kind, node));
            let url = self.receiver_url(node)?;
            // A secret that was refused ends the reading: going on unsigned is not what was asked for.
            let secret = match secret {
                None => None,
                Some(secret) => Some(secret?),
            };
            match &*kind {
                "webhook" => Kind::Webhook { url, secret },
                "dingtalk" => Kind::DingTalk { url, secret },
                "feishu" => Kind::Feishu { url, secret },
                "wecom" => Kind::WeCom { url },
                _ => Kind::Slack { url },
            }
        };
        Some(ReceiverSpec { name: name.into(), kind })
    }

    fn receiver_secret(&mut self, kind: &str, node: &Node) -> Option<Secret> {
        let at = node.at("secret");
        let reference = node.text("secret")?;
        let secret = self.secret(&at, &reference)?;
        // A webhook's signature is by Standard Webhooks; a bot's provider has a form of its own.
        let is_fit = if kind == "webhook" {
            self.signs(&at, &reference, &secret)
        } else {
            self.strong(&at, &reference, weakness(&secret, None).as_deref(), "")
        };
        is_fit.then_some(secret)
    }

    fn receiver_url(&mut self, node: &Node) -> Option<http::Uri> {
        if !self.need(node, "url", "write \"env:NAME\" or \"file:PATH\"") {
            return None;
        }
        let at = node.at("url");
        let secret = self.secret(&at, &node.text("url")?)?;
        let text = std::str::from_utf8(secret.expose()).unwrap_or_default();
        match check_url(text.trim(), false) {
            Ok(url) => Some(url),
            Err((message, hint)) => {
                // What was read is not shown: it may be a token in the wrong place.
                self.report.refuse(&at, Reason::Destination, message, hint);
                None
            }
        }
    }

    fn email(&mut self, node: &Node) -> Option<EmailSpec> {
        let tls = match node.text("tls").as_deref() {
            Some("tls") => SmtpTls::Tls,
            Some("none") => SmtpTls::None,
            _ => SmtpTls::StartTls,
        };
        let server = self
            .need(node, "server", "write for example \"smtp.example.com:587\"")
            .then(|| self.mail_server(node, tls))
            .flatten();
        let from =
            self.need(node, "from", "write for example \"chaski@example.com\"").then(|| node.text("from"));
        let from = from.flatten().and_then(|from| self.mailbox(&node.at("from"), &from));
        let to = self.need(node, "to", "write for example [\"ops@example.com\"]").then(|| node.texts("to"));
        let to: Vec<_> = to
            .flatten()
            .unwrap_or_default()
            .iter()
            .filter_map(|entry| self.mailbox(&Place { line: entry.line, ..node.at("to") }, &entry.text))
            .collect();
        if node.has("to") && !(1..=TO_MAX).contains(&to.len()) {
            let message = format!("needs 1 to {TO_MAX} addresses");
            self.report.refuse(&node.at("to"), Reason::Range, message, "");
        }
        let login = match (node.text("user"), node.text("password")) {
            (None, None) => Ok(None),
            (Some(user), Some(reference)) => {
                self.secret(&node.at("password"), &reference).map(|password| Some((user, password))).ok_or(())
            }
            _ => {
                self.report.refuse(
                    node.place(),
                    Reason::Missing,
                    "user without password, or the other way",
                    "write both",
                );
                Err(())
            }
        };
        let (host, port) = server?;
        Some(EmailSpec { from: from?, to, host, port, tls, login: login.ok()? })
    }

    fn mailbox(&mut self, at: &Place, text: &str) -> Option<lettre::message::Mailbox> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let hint = "write one like \"chaski@example.com\" or \"chaski <chaski@example.com>\"";
            self.report.refuse(at, Reason::Range, format!("{}: not a mail address", shown(text)), hint);
        }
        parsed
    }

    fn mail_server(&mut self, node: &Node, tls: SmtpTls) -> Option<(String, u16)> {
        const HINT: &str = "write a name or an address, and a port: \"smtp.example.com:587\"";
        let text = node.text("server")?;
        let default = match tls {
            SmtpTls::StartTls => 587,
            SmtpTls::Tls => 465,
            SmtpTls::None => 25,
        };
        let authority: Option<http::uri::Authority> = text.parse().ok();
        let authority = authority.filter(|authority| {
            let port = text.strip_prefix(authority.host()).unwrap_or("@");
            port.is_empty() || (authority.port_u16().is_some_and(|port| port > 0) && port.starts_with(':'))
        });
        let Some(authority) = authority else {
            self.report.refuse(&node.at("server"), Reason::Range, "not a mail server", HINT);
            return None;
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let is_here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if tls == SmtpTls::None && !is_here {
            let message =
                "clear text to another machine: alerts and the password would be open to all between";
            self.report.refuse(&node.at("tls"), Reason::Insecure, message, "take \"starttls\" or \"tls\"");
            return None;
        }
        Some((host, authority.port_u16().unwrap_or(default)))
    }
}

impl Config {
    /// What is watched by a process that delivers to these destinations only.
    pub(crate) fn alerts_for(&self, destinations: Vec<Arc<str>>) -> AlertsConfig {
        let rules = Rules { destinations, ..self.alerts.rules.clone() };
        AlertsConfig { rules, ..self.alerts.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    const URL: &str = "https://chat.test/send?key=t0ken-0aX7qLmZk3J9";

    fn env(name: &str) -> Option<String> {
        let value = match name {
            "URL" => URL,
            "CLEAR" => "http://chat.test/t0ken",
            "METADATA" => "http://169.254.169.254/t0ken",
            "TOKEN" => "t0ken",
            "GOOD" => "k3J9-0aX7qLmZ-production",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn parse(alerts: &str) -> Result<Config, String> {
        let text = format!(
            "[sources.pe]\nprovider = 'pagoefectivo'\nsecrets = ['env:GOOD']\nsilence = '6h'\n\
             [destinations.erp]\nurl = 'https://erp.test/x'\n[alerts]\n{alerts}"
        );
        Config::parse(&text, Path::new("chaski.toml"), &env).map_err(|errors| errors.to_string())
    }

    const EMAIL: &str = "[alerts.receivers.a]\nkind = 'email'\nfrom = 'a@b.test'\nto = ['c@d.test']\n";

    #[test]
    fn receivers_are_read_with_what_their_kind_needs() {
        let config = parse(&format!(
            "ignore = ['conflict']\n{EMAIL}server = 'mail.test'\ntls = 'tls'\nuser = 'a'\npassword = 'env:GOOD'\n\
             [alerts.receivers.b]\nkind = 'dingtalk'\nurl = 'env:URL'\nsecret = 'env:GOOD'\n\
             [alerts.receivers.c]\nkind = 'email'\nfrom = 'Shop <a@b.test>'\nto = ['c@d.test']\nserver = '[::1]:2525'\ntls = 'none'"
        ))
        .unwrap();
        let AlertsConfig { rules, receivers, .. } = &config.alerts;
        assert_eq!(rules.ignored, [Condition::Conflict]);
        assert_eq!(rules.sources["pe"], Some(Duration::from_secs(6 * 3600)));
        assert_eq!(rules.destinations.iter().map(|name| &**name).collect::<Vec<_>>(), ["erp"]);
        let mail = |index: usize| match &receivers[index].kind {
            Kind::Email(email) => (email.host.clone(), email.port, email.tls),
            other => panic!("{other:?}"),
        };
        assert_eq!(mail(0), ("mail.test".to_owned(), 465, SmtpTls::Tls));
        assert_eq!(mail(2), ("::1".to_owned(), 2525, SmtpTls::None));
        let Kind::DingTalk { url, secret: Some(_) } = &receivers[1].kind else { panic!("{receivers:?}") };
        assert_eq!(url, URL);
        let shown = format!("{config:?}");
        assert!(!shown.contains("t0ken") && !shown.contains("0aX7qLmZ"), "{shown}");
    }

    #[test]
    fn what_would_tell_nobody_or_everybody_is_refused() {
        let receiver = |lines: &str| format!("[alerts.receivers.a]\n{lines}");
        let email = |lines: &str| format!("{EMAIL}{lines}");
        for (alerts, said) in [
            (
                "ignore = ['conflicts']".to_owned(),
                "alerts.ignore: \"conflicts\": no alert has this name; did you mean \"conflict\"?",
            ),
            (receiver("url = 'env:URL'"), "alerts.receivers.a.kind: missing"),
            (receiver("kind = 'pager'"), "alerts.receivers.a.kind: must be one of"),
            (receiver("kind = 'slack'"), "alerts.receivers.a.url: missing"),
            (
                receiver("kind = 'slack'\nurl = 'https://chat.test/x'"),
                "a secret is never written in the file",
            ),
            (receiver("kind = 'slack'\nurl = 'env:CLEAR'"), "clear text to an address that is not local"),
            (receiver("kind = 'slack'\nurl = 'env:METADATA'"), "an address that is never posted to"),
            (receiver("kind = 'slack'\nurl = 'env:TOKEN'"), "alerts.receivers.a.url: not a whole URL"),
            (
                receiver("kind = 'slack'\nurl = 'env:URL'\nsecret = 'env:GOOD'"),
                "secret: not of a receiver of kind slack",
            ),
            (receiver("kind = 'feishu'\nurl = 'env:URL'\nsecret = 'env:TOKEN'"), "shorter than 16 bytes"),
            (email("server = 'mail.test'\nurl = 'env:URL'"), "url: not of a receiver of kind email"),
            (email("server = 'mail.test'\ntls = 'none'"), "clear text to another machine"),
            (email("server = 'u@mail.test'"), "not a mail server"),
            (email("server = 'mail.test:0'"), "not a mail server"),
            (email("server = 'mail.test'\nuser = 'a'"), "user without password"),
            (
                email("").replace("'a@b.test'", "'somebody'") + "server = 'mail.test'",
                "from: \"somebody\": not a mail address",
            ),
            (email("server = 'mail.test'").replace("['c@d.test']", "[]"), "to: needs 1 to 32 addresses"),
        ] {
            let problems = parse(&alerts).unwrap_err();
            assert!(problems.contains(said), "{alerts}\n{problems}");
            assert!(!problems.contains("t0ken"), "{problems}");
        }
    }

    #[test]
    fn a_silence_nobody_is_told_of_is_worth_a_word() {
        let warnings = parse("").unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.message.contains("nobody is told")), "{warnings:?}");
    }
}

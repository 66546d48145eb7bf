//! `[ingest]`: what the edge bears, and whom it believes.

use chaski_ingest::Limits;
use chaski_ingest::peer::Proxies;
use chaski_ingest::source::IpNet;
use http::uri::Authority;

use super::problem::{Place, Reason};
use super::reader::Node;
use super::units::spell_size;
use super::value::shown;
use super::{Checker, IngestConfig, net};

impl Checker<'_> {
    pub(super) fn ingest(&mut self, node: &Node) -> IngestConfig {
        let tls = self.tls(node.section("tls"));
        let listen = node.address("listen");
        if tls.is_none() && !listen.ip().is_loopback() {
            self.report.warn(
                &node.at("listen"),
                "clear text on an address that is not loopback; a TLS proxy must stand in front",
            );
        }
        let body_bytes_max = node.count("max_body");
        IngestConfig {
            listen,
            body_bytes_max,
            limits: self.limits(node, body_bytes_max),
            proxies: Proxies {
                proxy_protocol_from: self.proxies(node, "proxy_protocol_from"),
                forwarded_for_from: self.proxies(node, "forwarded_for_from"),
            },
            http2: node.flag("http2"),
            hosts: self.hosts(node),
            stop_delay: node.duration("stop_delay"),
            drain_timeout: node.duration("drain_timeout"),
            tls,
        }
    }

    fn limits(&mut self, node: &Node, body_bytes_max: usize) -> Limits {
        let limits = Limits {
            connections_max: node.count("connections_max"),
            connections_per_peer: node.count("connections_per_peer"),
            inflight_requests_max: node.count("requests_max"),
            inflight_bytes_max: node.count("bodies_max"),
            head_bytes_max: node.count("head_max"),
            headers_max: node.count("headers_max"),
            uri_bytes_max: node.count("uri_max"),
            failures_per_minute: node.count("failed_signatures_per_minute"),
            head_timeout: node.duration("header_timeout"),
            body_timeout: node.duration("body_timeout"),
            handshake_timeout: node.duration("handshake_timeout"),
            write_timeout: node.duration("write_timeout"),
            idle_timeout: node.duration("idle_timeout"),
        };
        if limits.inflight_bytes_max < body_bytes_max {
            let [all, one] =
                [limits.inflight_bytes_max, body_bytes_max].map(|bytes| spell_size(bytes as u64));
            let message = format!("{all} is less than one body may have (ingest.max_body is {one})");
            self.report.refuse(
                &node.at("bodies_max"),
                Reason::Range,
                message,
                "raise it, or lower ingest.max_body",
            );
        }
        limits
    }

    fn hosts(&mut self, node: &Node) -> Vec<String> {
        let mut hosts = Vec::new();
        let listed = node.texts("hosts").unwrap_or_default();
        if listed.is_empty() && node.has("hosts") {
            let hint = "leave it out to serve all";
            self.report.refuse(&node.at("hosts"), Reason::Range, "an empty list serves nobody", hint);
        }
        for entry in listed {
            let host = entry.text.to_ascii_lowercase();
            match host.parse::<Authority>() {
                Ok(authority) if authority.host() == host => hosts.push(host),
                _ => {
                    let at = Place { line: entry.line, ..node.at("hosts") };
                    let hint = "write a name or an address without a port, like \"pay.example.com\"";
                    self.report.refuse(
                        &at,
                        Reason::Range,
                        format!("{}: not a host", shown(&entry.text)),
                        hint,
                    );
                }
            }
        }
        hosts
    }

    fn proxies(&mut self, node: &Node, key: &str) -> Vec<IpNet> {
        let nets = self.nets(node, key);
        if nets.iter().any(|net| net.prefix_bits == 0) {
            let message = "believes everybody: any sender can say that it has any address, and allow_ips keeps nobody out";
            self.report.warn(&node.at(key), message);
        }
        nets
    }

    /// The address ranges of a list; one that cannot be read is a problem.
    pub(super) fn nets(&mut self, node: &Node, key: &str) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for entry in node.texts(key).unwrap_or_default() {
            match net::parse(&entry.text) {
                Ok(net) => nets.push(net),
                Err(message) => {
                    let at = Place { line: entry.line, ..node.at(key) };
                    let hint = "write one like \"203.0.113.0/24\" or \"2001:db8::/32\"";
                    let message = format!("{}: {message}", shown(&entry.text));
                    self.report.refuse(&at, Reason::Range, message, hint);
                }
            }
        }
        nets
    }
}

//! The one table of settings. The reader, `chaski config reference` and `chaski config schema` are all
//! driven by it, so a setting is known everywhere or nowhere.
//!
//! What follows from two settings together is not here but in the module of its section.

use std::time::Duration;

use super::value::Kind;

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section {
    /// Its last name.
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) settings: &'static [Setting],
    pub(super) sections: &'static [Section],
    /// What each table inside is, where their names are the operator's.
    pub(super) each: Option<&'static Section>,
    /// Left out of most files: commented out in the reference.
    pub(super) optional: bool,
}

/// A key of the file.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    pub(super) doc: &'static str,
    /// What holds when the key is left out, as TOML.
    pub(super) default: Option<&'static str>,
    /// What the reference shows, as TOML, where that is not the default.
    pub(super) example: Option<&'static str>,
    /// Whether the key must be there; the reference shows the example as a live line.
    pub(super) required: bool,
}

const fn setting(key: &'static str, kind: Kind, doc: &'static str) -> Setting {
    Setting { key, kind, doc, default: None, example: None, required: false }
}

impl Setting {
    const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
    const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }
    /// Needed, and therefore a live line of the reference.
    const fn required(self, example: &'static str) -> Self {
        Self { example: Some(example), required: true, ..self }
    }
}

const fn section(name: &'static str, doc: &'static str, settings: &'static [Setting]) -> Section {
    Section { name, doc, settings, sections: &[], each: None, optional: false }
}

impl Section {
    const fn with(self, sections: &'static [Self]) -> Self {
        Self { sections, ..self }
    }
    const fn each(self, each: &'static Self) -> Self {
        Self { each: Some(each), ..self }
    }
    const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    pub(super) fn setting(&self, key: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }
    pub(super) fn section(&self, name: &str) -> Option<&'static Self> {
        self.sections.iter().find(|section| section.name == name)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const fn from_to(min: Duration, max: Duration) -> Kind {
    Kind::Duration { min, max }
}

/// How old a request may be; an hour, but for a preset that has more: see `scheme`.
const PAST: Kind = from_to(SECOND, DAY);
const ENVIRONMENT: Kind = Kind::Choice(&["production", "sandbox"]);

/// The whole file.
pub(super) static FILE: Section =
    section("", "", &[]).with(&[INGEST, ADMIN, STORAGE, LOG, TELEMETRY, ALERTS, SOURCES, DESTINATIONS]);

const INGEST: Section = section("ingest", "The edge: where senders post to.", &[
    setting("listen", Kind::Address, "Address and port. A reverse proxy or [ingest.tls] belongs in front of anything but loopback.")
        .default("\"127.0.0.1:8080\""),
    setting("max_body", Kind::Size { min: KIB, max: 16 * MIB }, "The largest body taken; above it the answer is 413. On Kafka at most 1920KiB, which is what a record has room for.")
        .default("\"256KiB\""),
    setting("connections_max", Kind::Integer { min: 1, max: 1_000_000 }, "Connections open at once; above it new ones get 503 (over TLS nothing) and are closed.")
        .default("10000"),
    setting("connections_per_peer", Kind::Integer { min: 1, max: 1_000_000 }, "Connections open at once from one public address, or from the 64 bits of an IPv6 network; above it new ones are closed. Proxies and private addresses are not counted.")
        .default("2500"),
    setting("requests_max", Kind::Integer { min: 1, max: 1_000_000 }, "Requests under way at once; above it the answer is 503, before the body is read. Those whose body is not there yet may have half of them, and of those a stranger's address an eighth.")
        .default("4096"),
    setting("bodies_max", Kind::Size { min: KIB, max: 64 * 1024 * MIB }, "Bytes of bodies that are being read or stored at once; above it the answer is 503. At least max_body.")
        .default("\"64MiB\""),
    setting("failed_signatures_per_minute", Kind::Integer { min: 1, max: 60_000 }, "Wrong signatures from one public address, or from the 64 bits of an IPv6 network; above it the answer is 429, before the body is read unless the address has shown a right one within a day or is in allow_ips. Right ones are always taken there. Proxies and private addresses are not counted.")
        .default("60"),
    setting("head_max", Kind::Size { min: 8 * KIB, max: 64 * KIB }, "The largest head of a request; above it the answer is 431.").default("\"16KiB\""),
    setting("headers_max", Kind::Integer { min: 16, max: 256 }, "Header fields of a request; above it the answer is 431.").default("64"),
    setting("uri_max", Kind::Size { min: 256, max: 8 * KIB }, "The longest target of a request; above it the answer is 414.").default("\"2KiB\""),
    setting("header_timeout", from_to(SECOND, MINUTE), "How long a request's head may take; then the connection is closed.").default("\"5s\""),
    setting("body_timeout", from_to(SECOND, MINUTE), "How long a request's body may take; above it the answer is 408.")
        .default("\"5s\""),
    setting("handshake_timeout", from_to(SECOND, MINUTE), "How long a TLS handshake may take, and as long a PROXY header; then the connection is closed.")
        .default("\"5s\""),
    setting("write_timeout", from_to(SECOND, MINUTE), "How long a peer may take nothing of what is written to it; then the connection is closed.")
        .default("\"5s\""),
    setting("idle_timeout", from_to(SECOND, HOUR), "How long a connection may wait for its next request; then it is closed.").default("\"60s\""),
    setting("http2", Kind::Flag, "Speaks HTTP/2, too: over TLS where the client asks for it (ALPN), in clear text where it begins with it. Off, because senders of callbacks need no more than HTTP/1.1.")
        .default("false"),
    setting("hosts", Kind::Texts, "The names the edge is served under, without a port; any other Host gets 421. All when left out.")
        .example("[\"pay.example.com\"]"),
    setting("proxy_protocol_from", Kind::Texts, "Proxies whose connections begin with a PROXY header (version 1 or 2); one without it is closed. Nobody else is believed.")
        .example("[\"10.0.0.0/8\"]"),
    setting("forwarded_for_from", Kind::Texts, "Proxies whose X-Forwarded-For is believed: the rightmost address that is none of these is the sender's. It is what allow_ips and the limits per peer go by.")
        .example("[\"10.0.0.0/8\"]"),
    setting("stop_delay", from_to(Duration::ZERO, Duration::from_secs(600)), "How long callbacks are still taken when stopping, after /readyz has begun to say no: as long as a load balancer takes to notice.")
        .default("\"0s\""),
    setting("drain_timeout", from_to(SECOND, Duration::from_secs(600)), "How long requests under way are waited for when stopping.")
        .default("\"20s\""),
])
.with(&[section(
    "tls",
    "TLS spoken by chaski itself. Both cert and key, or neither.",
    &[
        setting("cert", Kind::Path, "The certificate and its chain, PEM. Relative paths, here and below, start at the folder of this file.")
            .required("\"tls/cert.pem\""),
        setting("key", Kind::Path, "Its private key, PEM; readable by its owner only.").required("\"tls/key.pem\""),
        setting("client_ca", Kind::Path, "Senders must show a certificate signed by one of these (mTLS).").example("\"tls/clients.pem\""),
    ],
)
.optional()]);

const ADMIN: Section = section(
    "admin",
    "Metrics, health and the API the commands talk to. Never the address of [ingest].",
    &[
        setting("listen", Kind::Address, "Address and port.").default("\"127.0.0.1:8081\""),
        setting("token", Kind::Secret, "Bearer token; required as soon as the address is not loopback.")
            .example("\"env:CHASKI_ADMIN_TOKEN\""),
    ],
);

const STORAGE: Section = section("storage", "Where events are made durable.", &[
    setting("kind", Kind::Choice(&["embedded", "kafka"]), "\"embedded\": one SQLite file, for one machine; \"kafka\": topics on Apache Kafka, for any number of edges and dispatchers.")
        .default("\"embedded\""),
    setting("path", Kind::Path, "The folder of the store. With Kafka the folder of the spool, on a local disk: it takes events while Kafka is away; without it they are answered 503.")
        .default("\"chaski-data\""),
    setting("retention", from_to(HOUR, Duration::from_secs(3650 * 86_400)), "How long settled events are kept; in the embedded store their ids, against duplicates, as long.")
        .default("\"30d\""),
    setting("parked_max", Kind::Integer { min: 1, max: 100_000_000 }, "Deliveries waiting for their next attempt, per destination; above it the destination takes nothing new.")
        .default("100000"),
    setting("brokers", Kind::Texts, "Kafka: where to find the cluster.").example("[\"127.0.0.1:9092\"]"),
    setting("topic_prefix", Kind::Text, "Kafka: what the names of topics and consumer groups begin with. Left out it is \"chaski\".").example("\"chaski\""),
    setting("partitions", Kind::Integer { min: 1, max: 1024 }, "Kafka: partitions of the events topic, how many dispatchers can share a destination. Left out it is 12.").example("12"),
    setting("replication", Kind::Integer { min: 1, max: 32 }, "Kafka: copies of everything; two of them must be written before a 200. Left out it is 3.").example("3"),
    setting("kafka", Kind::Settings, "Kafka: settings for its client, librdkafka, as its documentation names them; those that promises rest on are refused. Secrets are references.")
        .example("{ \"security.protocol\" = \"SASL_SSL\", \"sasl.mechanism\" = \"SCRAM-SHA-512\", \"sasl.username\" = \"chaski\", \"sasl.password\" = \"env:KAFKA_PASSWORD\" }"),
])
.with(&[section("dedup", "Kafka: the ids of events, shared by all edges.", &[
    setting("redis", Kind::Text, "Redis 7 or later: redis://HOST:PORT/DB, redis+sentinel://HOST,HOST/MASTER/DB or redis+cluster://HOST,HOST; rediss for TLS. \"env:NAME\" or \"file:PATH\" where the URL has a password.")
        .example("\"redis://127.0.0.1:6379/0\""),
    setting("rate", Kind::Rate, "Events that are expected, for the memory that `chaski check` says Redis needs.").default("\"100/s\""),
])
.optional()]);

const LOG: Section = section(
    "log",
    "What chaski says on stderr.",
    &[
        setting(
            "format",
            Kind::Choice(&["auto", "text", "json"]),
            "For people or for programs; auto is text on a terminal, JSON otherwise.",
        )
        .default("\"auto\""),
        setting("level", Kind::Choice(&["error", "warn", "info", "debug", "trace"]), "How much.")
            .default("\"info\""),
    ],
);

const TELEMETRY: Section = section("telemetry", "Traces: the way of each event, from the request that brought it to every attempt at every destination, for a collector that speaks OTLP. None are sent without one.", &[
    setting("otlp", Kind::Text, "The collector, over HTTP with protobuf; spans go to its /v1/traces. Without it, a trace that a sender began is only passed on.")
        .example("\"http://127.0.0.1:4318\""),
    setting("sampling", Kind::Number { min: 0.0, max: 1.0 }, "The share of events of which traces are sent, where the sender did not begin one; where it did, it has decided.")
        .default("1.0"),
]);

const ALERTS: Section = section("alerts", "Who is told when money is at risk, without a monitoring system beside chaski: a message when it begins, again while it lasts, and when it is over. Nobody is, without a receiver.", &[
    setting("group", from_to(Duration::from_millis(100), Duration::from_secs(600)), "What begins within this time goes to a receiver in one message.").default("\"5s\""),
    setting("every", from_to(Duration::from_millis(100), DAY), "A receiver gets at most one message in this time; what happens meanwhile is in the next.").default("\"1m\""),
    setting("repeat", from_to(MINUTE, Duration::from_secs(30 * 86_400)), "What lasts is told again after this time.").default("\"4h\""),
    setting("ignore", Kind::Texts, "Alerts that nobody wants: source-failing, source-silent, signature-anomaly, quarantine, conflict, destination-failing, breaker-open, backlog-old, dead-letter, events-lost, store-poisoned, disk-low, spool-in-use, dedup-degraded, clock-off.")
        .default("[]"),
    setting("failures_in_a_row", Kind::Integer { min: 1, max: 1_000_000 }, "Genuine callbacks of a source in a row that were not answered 200, or failed attempts at a destination.")
        .default("5"),
    setting("refused_signatures", Kind::Integer { min: 1, max: 1_000_000_000 }, "Requests of a source without a right signature in five minutes: at least so many")
        .default("20"),
    setting("refused_signatures_share", Kind::Number { min: 0.0, max: 1.0 }, "and at least this share of all its requests.").default("0.2"),
    setting("oldest_unsettled", from_to(SECOND, Duration::from_secs(30 * 86_400)), "Age of the oldest event that a destination has neither taken nor parked; not while its breaker is open.")
        .default("\"5m\""),
    setting("breaker_open", from_to(SECOND, DAY), "How long a destination's breaker may be open.").default("\"5m\""),
    setting("degraded", from_to(SECOND, DAY), "Kafka: how long the spool may be in use, or deduplication go on without Redis.").default("\"2m\""),
    setting("disk_free", Kind::Size { min: 0, max: 1 << 44 }, "What must be free where the store or the spool is.").default("\"1GiB\""),
    setting("clock_offset", from_to(SECOND, HOUR), "How far this machine's clock may be off.").default("\"30s\""),
])
.with(&[RECEIVERS]);

const RECEIVERS: Section = section("receivers", "", &[]).each(&RECEIVER).optional();

static RECEIVER: Section = section(
    "NAME",
    "A receiver; `chaski alerts test` tries it.",
    &[
        setting(
            "kind",
            Kind::Choice(&["webhook", "slack", "dingtalk", "feishu", "wecom", "email"]),
            "webhook: JSON to a program of yours; feishu is Lark, too.",
        )
        .required("\"slack\""),
        setting(
            "url",
            Kind::Secret,
            "All but email: where to post. A reference, because a bot's URL holds its token.",
        )
        .example("\"env:ALERTS_URL\""),
        setting(
            "secret",
            Kind::Secret,
            "webhook: signs by Standard Webhooks; dingtalk and feishu: of the bot's signing.",
        )
        .example("\"env:ALERTS_SECRET\""),
        setting(
            "server",
            Kind::Text,
            "email: the mail server; without a port it is 587, with tls = \"tls\" 465, with \"none\" 25.",
        )
        .example("\"smtp.example.com:587\""),
        setting(
            "tls",
            Kind::Choice(&["starttls", "tls", "none"]),
            "email: how the connection is protected; \"none\" to this machine only.",
        )
        .default("\"starttls\""),
        setting("from", Kind::Text, "email: the sender.").example("\"chaski <chaski@example.com>\""),
        setting("to", Kind::Texts, "email: who gets it, at most 32.").example("[\"ops@example.com\"]"),
        setting("user", Kind::Text, "email: the login, where the server asks for one.")
            .example("\"chaski@example.com\""),
        setting("password", Kind::Secret, "email: its password.").example("\"env:SMTP_PASSWORD\""),
    ],
);

const SOURCES: Section = section("sources", "", &[]).each(&SOURCE);

static SOURCE: Section = section("NAME", "A sender, reached at /in/NAME. Either a preset, of which single fields may be overridden below, or a whole description.", &[
    setting("provider", Kind::Text, "The preset it is built on; `chaski check` prints what it stands for.").example("\"pagoefectivo\""),
    setting("secrets", Kind::SecretSet, "Secrets, each \"env:NAME\" or \"file:PATH\"; any may match, those after the first may be absent. With signature.key.select a table: { \"key-1\" = \"env:A\" }. While one takes over from another, either may be a table that says when it is good: { secret = \"env:A\", not_before = \"2026-12-01T00:00:00Z\", not_after = \"2026-12-31T00:00:00Z\" }. How old a secret is counts from not_before, or else from the last change of its file.")
        .example("[\"env:ACME_SECRET\", \"env:ACME_SECRET_PREVIOUS\"]"),
    setting("path", Kind::Text, "Where it posts to; /in/NAME when left out.").example("\"/in/acme\""),
    setting("environment", ENVIRONMENT, "Sandbox events go to sandbox destinations only.").default("\"production\""),
    setting("allow_ips", Kind::Texts, "Peers that may post; all when left out.").example("[\"203.0.113.0/24\"]"),
    setting("dedup_window", from_to(MINUTE, Duration::from_secs(3650 * 86_400)), "How long a repeated event must be recognised; at most storage.retention.")
        .default("\"72h\""),
    setting("silence", from_to(MINUTE, Duration::from_secs(30 * 86_400)), "An alert is raised when no event was accepted for this long; never when left out.")
        .example("\"6h\""),
    setting("sender_retry_window", from_to(SECOND, Duration::from_secs(3650 * 86_400)), "How long the sender repeats what was not answered, if known; dedup_window must not be shorter.")
        .example("\"72h\""),
    setting("on_conflict", Kind::Choice(&["quarantine", "duplicate"]), "Same event id, other content: kept as a dead letter and alarmed, or taken for a resend. What the preset says, else quarantine.")
        .example("\"quarantine\""),
    setting("weak_secret", Kind::Choice(&["refuse", "allow"]), "A secret under 16 bytes, a placeholder, or one that another source of the same environment has; \"allow\" where a provider gave no better one.")
        .default("\"refuse\""),
])
.with(&[SIGNATURE, EVENT, REPLY]);

const SIGNATURE: Section = section("signature", "How it signs.", &[
    setting("algorithm", Kind::Choice(&["hmac-sha1", "hmac-sha256", "hmac-sha512", "ed25519", "http-basic"]), "http-basic compares credentials and signs nothing.")
        .required("\"hmac-sha256\""),
    setting("from", Kind::Text, "Where the signature is: header:NAME, query:NAME, form:FIELD or json:/pointer.").required("\"header:x-acme-signature\""),
    setting("list", Kind::Text, "Splits the value into entries.").example("\",\""),
    setting("pair", Kind::Text, "Splits an entry into tag and value.").example("\"=\""),
    setting("tags", Kind::Texts, "The tags whose entries count; any may match.").example("[\"v1\"]"),
    setting("prefix", Kind::Text, "Must stand in front of an unpaired entry.").default("\"\""),
    setting("encoding", Kind::Choice(&["hex", "base64"]), "How the signature is written.").default("\"hex\""),
    setting("template", Kind::Text, "What is signed: {body} {ts} {header:N} {query:N} {form:N} {json:/ptr} {const:N}, with |lower and |unslash; a part in [..] drops out when a variable in it is missing.")
        .default("\"{body}\"")
        .example("\"{ts}.{body}\""),
    setting("const", Kind::TextTable, "Values for {const:N}.").example("{ login = \"acme-login\" }"),
    setting("body", Kind::Texts, "The forms of the body that are tried in order: raw, json_minify.").default("[\"raw\"]"),
])
.with(&[
    section("key", "What the key is made of.", &[
        setting("secrets", Kind::SecretSet, "The same as sources.NAME.secrets, written here instead.").example("[\"env:ACME_SECRET\"]"),
        setting("strip_prefix", Kind::Text, "Cut off in front of the secret, if it is there.").default("\"\"").example("\"whsec_\""),
        setting("encoding", Kind::Choice(&["utf8", "hex", "base64"]), "How the secret is written.").default("\"utf8\""),
        setting("select", Kind::Text, "Where the request names the secret; an unknown name is a refusal.").example("\"header:x-key-id\""),
    ]),
    section("timestamp", "When the sender says it signed. Without {ts} in the template it is advisory: whoever replays can rewrite it.", &[
        setting("from", Kind::Text, "tag:T, header:NAME or json:/pointer.").required("\"header:x-acme-timestamp\""),
        setting("format", Kind::Choice(&["unix", "unix_ms", "unix_auto", "rfc3339"]), "unix_auto takes numbers above 1e11 for milliseconds.")
            .required("\"unix\""),
        setting("past", PAST, "How old it may be; at most 1h, or what the preset says where that is more.").default("\"5m\""),
        setting("future", from_to(SECOND, HOUR), "How far ahead it may be; at most 1h.").default("\"5m\""),
    ]),
]);

const EVENT: Section = section(
    "event",
    "What its events carry. Places are json:/pointer, header:NAME, query:NAME or form:FIELD.",
    &[
        setting("id", Kind::Texts, "The parts of the deduplication key.")
            .example("[\"json:/id\"]")
            .required("[\"json:/id\"]"),
        setting(
            "fallback",
            Kind::Choice(&["body-sha256", "signed-sha256"]),
            "Stands in for a key with a missing or empty part: a hash of the body, or of the text that was signed, where that is a part of the body and the rest is anybody's. Without it such an event is quarantined.",
        )
        .example("\"body-sha256\""),
        setting("type", Kind::Text, "The event's type.").example("\"json:/type\""),
        setting("subject", Kind::Text, "What it is about; also the ordering key.")
            .example("\"json:/data/order\""),
        setting("time", Kind::Text, "When it happened.").example("\"json:/created\""),
        setting(
            "content",
            Kind::Choice(&["json", "form", "any", "pagoefectivo"]),
            "What a body must be to be used; json when left out.",
        )
        .example("\"json\""),
        setting(
            "max_age",
            from_to(MINUTE, Duration::from_secs(3650 * 86_400)),
            "An event that happened longer ago is quarantined; any age will do when left out.",
        )
        .example("\"30d\""),
        setting(
            "on_conflict",
            Kind::Choice(&["quarantine", "duplicate"]),
            "What a preset says; sources.NAME.on_conflict goes before it.",
        )
        .example("\"quarantine\""),
    ],
);

const REPLY: Section = section(
    "reply",
    "The answer to an event that is accepted, a duplicate, or quarantined.",
    &[
        setting("status", Kind::Integer { min: 200, max: 299 }, "A 2xx status.").default("200"),
        setting("body", Kind::Text, "A fixed body; JSON with id and status when left out.").example("\"ok\""),
        setting("content_type", Kind::Text, "The content type of that body.").default("\"text/plain\""),
    ],
);

const DESTINATIONS: Section = section("destinations", "", &[]).each(&DESTINATION);

static DESTINATION: Section = section("NAME", "A receiver, and what it takes.", &[
    setting("url", Kind::Text, "Where to post, https; http only to loopback, private and local names.").required("\"http://127.0.0.1:9001/hooks\""),
    setting("allow_http", Kind::Flag, "Send in clear text to any address.").default("false"),
    setting("environment", ENVIRONMENT, "Takes events of sources of the same environment.").default("\"production\""),
    setting("sources", Kind::Texts, "The sources it takes; all of its environment when left out.").example("[\"pagoefectivo\"]"),
    setting("events", Kind::Texts, "Event types it takes, exact or ending in *; all when left out. An event without a type passes.").example("[\"cip.paid\", \"cip.*\"]"),
    setting("secret", Kind::Secrets, "Signs what is sent (Standard Webhooks): 24 to 64 bytes in base64, whsec_ in front or not; two while rotating, the current one first.").example("\"env:ORDERS_SECRET\""),
    setting("ordering", Kind::Choice(&["none", "key"]), "\"key\": one delivery under way per subject, in order.").default("\"none\""),
    setting("concurrency", Kind::Integer { min: 1, max: 1024 }, "Attempts under way at once.").default("32"),
    setting("rate", Kind::Rate, "Attempts begun per second, minute or hour; as many as concurrency allows when left out.").example("\"100/s\""),
    setting("timeout", from_to(SECOND, Duration::from_secs(120)), "One attempt, from connect to the last byte.").default("\"25s\""),
    setting("start", Kind::Text, "Where a new destination begins: \"now\", \"beginning\", or a time like \"2026-01-31T00:00:00Z\".")
        .default("\"now\""),
])
.with(&[
    section("auth", "A credential for the request's head. One of the three; short: auth = { bearer = \"env:ORDERS_TOKEN\" }.", &[
        setting("bearer", Kind::Secret, "Authorization: Bearer …").example("\"env:ORDERS_TOKEN\""),
    ])
    .with(&[
        section("basic", "Authorization: Basic …", &[
            setting("user", Kind::Text, "The user's name.").required("\"chaski\""),
            setting("password", Kind::Secret, "The password.").required("\"env:ORDERS_PASSWORD\""),
        ])
        .optional(),
        section("header", "A header of the receiver's choice.", &[
            setting("name", Kind::Text, "Its name.").required("\"x-api-key\""),
            setting("value", Kind::Secret, "Its value.").required("\"env:ORDERS_API_KEY\""),
        ])
        .optional(),
    ])
    .optional(),
    section("retry", "When to try again. A delay is drawn between zero and its ceiling: first, then factor times longer, up to cap.", &[
        setting("first", from_to(Duration::from_millis(100), DAY), "The first ceiling.").default("\"5s\""),
        setting("factor", Kind::Number { min: 1.0, max: 100.0 }, "How much longer with each failure.").default("3"),
        setting("cap", from_to(Duration::from_millis(100), Duration::from_secs(30 * 86_400)), "The longest ceiling.").default("\"6h\""),
        setting("give_up_after", from_to(SECOND, Duration::from_secs(3650 * 86_400)), "After this it is a dead letter; at most storage.retention.")
            .default("\"72h\""),
        setting("schedule", Kind::Durations, "The ceilings one by one, instead of first, factor and cap; the last one repeats.")
            .example("[\"5s\", \"5m\", \"30m\", \"2h\", \"5h\", \"10h\"]"),
    ]),
]);

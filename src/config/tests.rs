//! The rules of the file, as data: a fragment, and what is said about it where.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What `env:` finds: each of these, and nothing else.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "GOOD" | "GOOD_AGAIN" => "k3J9-0aX7qLmZ-production",
        "OTHER" => "k3J9-0aX7qLmZ-another-one",
        "EMPTY" => "",
        "SHORT" => "12345678",
        "KEY" => "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "BROKEN_KEY" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        "PLACEHOLDER" => "changeme-changeme-changeme",
        "LINES" => "1\r\nX-B: 2",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("chaski.toml"), &env)
}

/// Label and line of every problem.
fn verdict(text: &str) -> Vec<(&'static str, usize)> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(|problem| (problem.reason.label(), problem.line)).collect(),
    }
}

/// A source of two lines and what follows on the third.
fn source(rest: &str) -> String {
    format!("[sources.a]\nprovider = 'pagoefectivo'\n{rest}\n")
}

/// A whole source of three lines, and what follows on the fourth.
fn whole_source(rest: &str) -> String {
    source(&format!("secrets = ['env:GOOD']\n{rest}"))
}

/// A destination of two lines and what follows on the third.
fn destination(rest: &str) -> String {
    format!("[destinations.d]\nurl = 'https://erp.test/x'\n{rest}\n")
}

fn with_url(url: &str) -> String {
    format!("[destinations.d]\nurl = '{url}'\n")
}

fn telemetry(rest: &str) -> String {
    format!("[telemetry]\n{rest}\n")
}

/// A described source; `rest` is inside its signature.
fn described(rest: &str) -> String {
    format!(
        "[sources.a]\nsecrets = ['env:GOOD']\n[sources.a.event]\nid = ['json:/id']\n[sources.a.signature]\nalgorithm = 'hmac-sha256'\nfrom = 'header:s'\n{rest}\n"
    )
}

#[test]
fn what_must_not_run_is_refused_with_its_reason_and_line() {
    let second = |environment: &str, secret: &str| {
        whole_source(&format!(
            "[sources.b]\nprovider = 'pagoefectivo'\nenvironment = '{environment}'\nsecrets = ['env:{secret}']"
        ))
    };
    for (id, text, reason, line) in [
        ("CF-001", source("secrets = ['env:EMPTY']"), "config_secret_weak", 3),
        ("CF-001 allowed", source("secrets = ['env:EMPTY']\nweak_secret = 'allow'"), "config_secret_weak", 3),
        ("collector", telemetry("otlp = 'http://collector.example:4318'"), "config_destination", 2),
        ("collector's path", telemetry("otlp = 'http://127.0.0.1:4318/v1/traces'"), "config_destination", 2),
        ("collector, no URL", telemetry("otlp = '127.0.0.1:4318'"), "config_destination", 2),
        ("sampling", telemetry("otlp = 'http://127.0.0.1:4318'\nsampling = 1.5"), "config_range", 3),
        ("CF-002", source("secrets = ['env:SHORT']"), "config_secret_weak", 3),
        ("CF-003", source("secrets = ['env:PLACEHOLDER']"), "config_secret_weak", 3),
        ("CF-004", second("sandbox", "GOOD_AGAIN"), "config_secret_reused", 7),
        ("reused, another name", second("production", "GOOD_AGAIN"), "config_secret_reused", 7),
        (
            "twice",
            source("secrets = ['env:GOOD',\n'env:OTHER',\n'env:GOOD_AGAIN']"),
            "config_secret_reused",
            5,
        ),
        (
            "time without offset",
            source("secrets = [{ secret = 'env:GOOD', not_after = '2026-12-31' }]"),
            "config_range",
            3,
        ),
        (
            "never good",
            source(
                "secrets = [{ secret = 'env:GOOD', not_before = '2026-12-31T00:00:00Z', not_after = 2026-12-31T00:00:00Z }]",
            ),
            "config_range",
            3,
        ),
        ("time of nothing", source("secrets = [{ not_after = '2026-12-31T00:00:00Z' }]"), "config_range", 3),
        (
            "one dated secret without a list",
            source("secrets = { secret = 'env:GOOD', not_after = '2026-12-31T00:00:00Z' }"),
            "config_range",
            3,
        ),
        (
            "misspelt time",
            source("secrets = [{ secret = 'env:GOOD', not_afer = '2026-12-31T00:00:00Z' }]"),
            "config_unknown_key",
            3,
        ),
        (
            "dated literal secret",
            source("secrets = [{ secret = 'hunter2hunter2hunter2' }]"),
            "config_insecure",
            3,
        ),
        ("literal secret", source("secrets = ['hunter2hunter2hunter2']"), "config_insecure", 3),
        ("unset variable", source("secrets = ['env:NOT_THERE']"), "config_env", 3),
        ("no secrets", source(""), "config_missing", 1),
        ("empty secrets", source("secrets = []"), "config_missing", 3),
        (
            "secrets twice",
            whole_source("[sources.a.signature.key]\nsecrets = ['env:GOOD']"),
            "config_duplicate",
            5,
        ),
        ("no place of a key id", described("[sources.a.signature.key]\nselect = 'k'"), "config_scheme", 9),
        ("key ids without select", source("secrets = { k = 'env:GOOD' }"), "config_range", 3),
        (
            "CF-007",
            described("[sources.a.signature.timestamp]\nfrom = 'header:t'\nformat = 'unix'\npast = '0s'"),
            "config_range",
            11,
        ),
        (
            "CF-008",
            described("[sources.a.signature.timestamp]\nfrom = 'header:t'\nformat = 'unix'\npast = '1d'"),
            "config_range",
            11,
        ),
        (
            "timestamp from nowhere",
            described("[sources.a.signature.timestamp]\nformat = 'unix'"),
            "config_missing",
            8,
        ),
        (
            "CF-009",
            whole_source(
                "path = '/x'\n[sources.b]\nprovider = 'pagoefectivo'\nsecrets = ['env:GOOD']\npath = '/x'",
            ),
            "config_duplicate",
            8,
        ),
        ("relative path", whole_source("path = 'x'"), "config_range", 4),
        ("path with ..", whole_source("path = '/in/../x'"), "config_range", 4),
        ("path with //", whole_source("path = '/in//x'"), "config_range", 4),
        ("path with a query", whole_source("path = '/in/x?y'"), "config_range", 4),
        ("CF-010", whole_source("tolerence = '300s'"), "config_unknown_key", 4),
        ("CF-011", "[ingest]\nmax_body = '1MiB'\nmax_body = '2MiB'\n".to_owned(), "config_syntax", 3),
        ("not TOML", "[ingest]\nlisten = \n".to_owned(), "config_syntax", 2),
        ("CF-014", "[ingest]\nmax_body = 0\n".to_owned(), "config_range", 2),
        ("CF-014 with unit", "[ingest]\nmax_body = '0B'\n".to_owned(), "config_range", 2),
        ("size without unit", "[ingest]\nmax_body = 262144\n".to_owned(), "config_range", 2),
        ("too large a body", "[ingest]\nmax_body = '17MiB'\n".to_owned(), "config_range", 2),
        ("a host with a port", "[ingest]\nhosts = ['pay.example.com:443']\n".to_owned(), "config_range", 2),
        ("no host at all", "[ingest]\nhosts = []\n".to_owned(), "config_range", 2),
        (
            "less for all bodies than for one",
            "[ingest]\nbodies_max = '255KiB'\n".to_owned(),
            "config_range",
            2,
        ),
        (
            "a proxy that is no network",
            "[ingest]\nforwarded_for_from = ['10.0.0.1/8']\n".to_owned(),
            "config_range",
            2,
        ),
        ("duration without unit", "[storage]\nretention = 30\n".to_owned(), "config_range", 2),
        (
            "CF-018",
            whole_source("dedup_window = '1h'\nsender_retry_window = '72h'"),
            "config_dedup_window",
            4,
        ),
        ("dedup above retention", whole_source("dedup_window = '31d'"), "config_dedup_window", 4),
        ("CF-020", with_url("http://erp.test/x"), "config_destination", 2),
        ("CF-021", with_url("https://u:p@erp.test/x"), "config_destination", 2),
        ("CF-026", with_url("https://erp.test:6379/"), "config_destination", 2),
        ("CF-027", with_url("https://2130706433/"), "config_destination", 2),
        ("CF-028", with_url("https://0x7f.1/"), "config_destination", 2),
        ("CF-029", with_url("https://localhost./"), "config_destination", 2),
        ("no url", "[destinations.d]\n".to_owned(), "config_missing", 1),
        (
            "CF-030",
            destination("auth = { header = { name = 'x-a', value = 'env:LINES' } }"),
            "config_header",
            3,
        ),
        ("bearer with a line break", destination("auth = { bearer = 'env:LINES' }"), "config_header", 3),
        (
            "CF-032",
            destination("auth = { header = { name = 'Host', value = 'env:GOOD' } }"),
            "config_header",
            3,
        ),
        (
            "our header",
            destination("auth = { header = { name = 'webhook-id', value = 'env:GOOD' } }"),
            "config_header",
            3,
        ),
        ("no credential", destination("auth = {}"), "config_missing", 3),
        (
            "two credentials",
            destination("auth = { bearer = 'env:GOOD', basic = { user = 'u', password = 'env:GOOD' } }"),
            "config_range",
            3,
        ),
        ("user without password", destination("auth = { basic = { user = 'u' } }"), "config_missing", 3),
        ("CF-034", destination("retry = { schedule = [] }"), "config_range", 3),
        ("CF-035", destination("retry = { schedule = ['400d'] }"), "config_range", 3),
        ("schedule above giving up", destination("retry = { schedule = ['80h'] }"), "config_range", 3),
        ("schedule and first", destination("retry = { schedule = ['5s'], first = '5s' }"), "config_range", 3),
        ("cap below first", destination("retry = { first = '1h', cap = '1m' }"), "config_range", 3),
        ("giving up after retention", destination("retry = { give_up_after = '31d' }"), "config_range", 3),
        (
            "CF-037",
            "[ingest]\nlisten = '127.0.0.1:80'\n[admin]\nlisten = '127.0.0.1:80'\n".to_owned(),
            "config_insecure",
            4,
        ),
        ("admin without token", "[admin]\nlisten = '0.0.0.0:8081'\n".to_owned(), "config_insecure", 2),
        ("listen without port", "[ingest]\nlisten = '127.0.0.1'\n".to_owned(), "config_range", 2),
        (
            "a body that no record has room for",
            "[ingest]\nmax_body = '2MiB'\n[storage]\nkind = 'kafka'\nbrokers = ['127.0.0.1:1']\n".to_owned(),
            "config_range",
            2,
        ),
        ("kafka without brokers", "[storage]\nkind = 'kafka'\n".to_owned(), "config_missing", 1),
        ("unknown section", "[nobody]\nurl = 'x'\n".to_owned(), "config_unknown_key", 1),
        ("value for a table", "ingest = 1\n".to_owned(), "config_range", 1),
        ("bad name", "[sources.A]\n".to_owned(), "config_range", 1),
        ("no scheme", "[sources.a]\nsecrets = ['env:GOOD']\n".to_owned(), "config_missing", 1),
        (
            "unknown preset",
            "[sources.a]\nprovider = 'pagefectivo'\nsecrets = ['env:GOOD']\n".to_owned(),
            "config_range",
            2,
        ),
        (
            "bad range of peers",
            whole_source("allow_ips = ['203.0.113.0/24',\n'203.0.113.7/24']"),
            "config_range",
            5,
        ),
        ("template", described("template = '{ts}{body'"), "config_scheme", 8),
        (
            "template and a weak secret",
            described("template = '{nothing}'").replace("GOOD", "SHORT"),
            "config_scheme",
            8,
        ),
        ("template without a time", described("template = '{ts}.{body}'"), "config_scheme", 5),
        ("no place", whole_source("[sources.a.event]\nid = ['json:/id',\n'cookie:x']"), "config_scheme", 6),
        (
            "places in a preset's content that need not be JSON",
            "[sources.a]\nprovider = 'github'\nsecrets = ['env:GOOD']\n[sources.a.event]\ntype = 'json:/action'\n".to_owned(),
            "config_scheme",
            4,
        ),
        (
            "places in JSON of a form",
            described("").replace("id = ['json:/id']", "content = 'form'\nid = ['json:/id']"),
            "config_scheme",
            4,
        ),
        (
            "places in JSON of anything",
            described("").replace("id = ['json:/id']", "id = ['header:i']\ncontent = 'any'\ntype = 'json:/t'"),
            "config_scheme",
            5,
        ),
        ("no part of a key", described("").replace("['json:/id']", "[]"), "config_scheme", 4),
        (
            "no part of a preset's key",
            "[sources.a]\nprovider = 'stripe'\nsecrets = ['env:GOOD']\nevent.id = []\n".to_owned(),
            "config_scheme",
            4,
        ),
        ("too many parts", described("").replace("'json:/id'", &["'json:/id'"; 9].join(",")), "config_scheme", 4),
        ("no form", whole_source("[sources.a.signature]\nbody = ['yaml']"), "config_scheme", 5),
        ("not hex", described("[sources.a.signature.key]\nencoding = 'hex'"), "config_scheme", 2),
        (
            "constant",
            "[sources.a]\nprovider = 'dlocal'\nsecrets = ['env:GOOD']\n".to_owned(),
            "config_scheme",
            1,
        ),
        (
            "a hash of what credentials sign",
            "[sources.a]\nprovider = 'culqi'\nsecrets = ['env:BASIC']\nevent.fallback = 'signed-sha256'\n".to_owned(),
            "config_scheme",
            4,
        ),
        (
            "unknown algorithm",
            whole_source("[sources.a.signature]\nalgorithm = 'hmac-md5'"),
            "config_range",
            5,
        ),
        ("an answer without content", whole_source("reply = { body = 'ok', status = 204 }"), "config_scheme", 4),
        ("an answer that resets", whole_source("[sources.a.reply]\nbody = 'ok'\nstatus = 205"), "config_scheme", 6),
        ("unknown source", destination("sources = ['b']"), "config_destination", 3),
        (
            "other environment",
            format!(
                "{}environment = 'sandbox'\nsources = ['a']",
                whole_source("[destinations.d]\nurl = 'https://erp.test'")
            ),
            "config_destination",
            7,
        ),
        ("star inside a pattern", destination("events = ['a', 'a.*.b']"), "config_range", 3),
        ("rate", destination("rate = '100'"), "config_range", 3),
        ("concurrency", destination("concurrency = 0"), "config_range", 3),
        ("timeout", destination("timeout = '121s'"), "config_range", 3),
        ("start", destination("start = 'yesterday'"), "config_range", 3),
        ("signing secret without a key", destination("secret = 'env:BROKEN_KEY'"), "config_scheme", 3),
        ("weak signing secret", destination("secret = 'env:SHORT'"), "config_secret_weak", 3),
        ("client_ca alone", "[ingest.tls]\nclient_ca = '/nowhere/c'\n".to_owned(), "config_missing", 1),
        (
            "tls without files",
            "[ingest.tls]\ncert = '/nowhere/c'\nkey = '/nowhere/k'\n".to_owned(),
            "config_tls",
            2,
        ),
        ("tls without key", "[ingest.tls]\ncert = '/nowhere/c'\n".to_owned(), "config_missing", 1),
    ] {
        assert!(
            verdict(&text).contains(&(reason, line)),
            "{id}: {:?}\n{}",
            verdict(&text),
            parse(&text).unwrap_err()
        );
    }
}

#[test]
fn a_single_fault_is_one_problem() {
    for text in [
        whole_source("tolerence = '300s'"),
        source("secrets = ['env:SHORT']"),
        source("secrets = { k = 'env:GOOD' }"),
        destination("retry = { schedule = ['400d'] }"),
        with_url("http://erp.test/x"),
        source(""),
        "[sources.a]\nprovider = 'pagefectivo'\nsecrets = ['env:GOOD']\n".to_owned(),
        "[sources.a]\nprovider = 5\nsecrets = ['env:GOOD']\n".to_owned(),
        "[admin]\nlisten = '0.0.0.0:8081'\n".to_owned(),
        destination("auth = { bearer = 5 }"),
        whole_source("allow_ips = ['x']"),
    ] {
        assert_eq!(verdict(&text).len(), 1, "{}", parse(&text).unwrap_err());
    }
}

#[test]
fn all_problems_of_a_file_are_told_at_once_in_its_order() {
    let text = "[ingest]\nlisten = 'here'\nmax_body = 1\n[sources.a]\nprovider = 'pagoefectivo'\nsecrets = ['env:SHORT']\ntolerence = '5m'\n\
                [destinations.d]\nurl = 'http://erp.test/x'\nrate = 'fast'\n[destinations.d.retry]\nfirst = 5\n";
    let lines: Vec<usize> = verdict(text).into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, [2, 3, 6, 7, 9, 10, 12]);
}

#[test]
fn all_problems_of_a_scheme_are_told_at_once() {
    let text = "[sources.a]\nsecrets = { k = 'env:GOOD', l = 'env:OTHER' }\n[sources.a.signature]\nalgorithm = 'hmac-sha256'\nfrom = 'cookie:s'\n\
                tags = ['v1']\ntemplate = '{foo}{const:c}'\nencoding = 'base64'\nbody = ['raw',\n'min']\n\
                [sources.a.signature.key]\nencoding = 'hex'\nselect = 'k'\n\
                [sources.a.signature.timestamp]\nfrom = 'cookie:t'\nformat = 'unix'\n\
                [sources.a.event]\nid = ['json:/id',\n'x']\ntype = 'y'\nsubject = 'z'\n";
    let told = [2, 2, 3, 3, 5, 7, 10, 13, 15, 19, 20, 21];
    let lines = |text: &str| {
        let mut lines: Vec<usize> = verdict(text).into_iter().map(|(_, line)| line).collect();
        lines.sort_unstable();
        lines
    };
    let sorted = |mut told: Vec<usize>| {
        told.sort_unstable();
        told
    };
    assert_eq!(lines(text), sorted(told.to_vec()), "{}", parse(text).unwrap_err());
    // What is missing hides nothing: with an example in its place, the rest is looked at.
    let without = text.replace("algorithm = 'hmac-sha256'", "").replace("format = 'unix'", "");
    assert_eq!(
        lines(&without),
        sorted([told.as_slice(), &[3, 14]].concat()),
        "{}",
        parse(&without).unwrap_err()
    );
    let told = parse(text).unwrap_err().to_string();
    assert!(told.contains("secrets: k: a secret is not hex") && told.contains("secrets: l: "), "{told}");
}

#[test]
fn every_wrong_entry_of_a_list_is_told_by_its_name_or_number() {
    let told = |text: &str| {
        let errors = parse(text).unwrap_err();
        errors.0.iter().map(|problem| (problem.line, problem.message.clone())).collect::<Vec<_>>()
    };
    let literal = "a secret is never written in the file";
    let cases: [(String, &[(usize, &str)]); 13] = [
        (
            source("secrets = ['hunter2hunter2hunter2', 'env:GOOD',\n'hunter3hunter3hunter3', 7]"),
            &[
                (3, &format!("entry 1: {literal}")),
                (4, &format!("entry 3: {literal}")),
                (4, "entry 4: must be a text, not a whole number"),
            ],
        ),
        (
            "[sources.a]\nprovider = 'izipay'\nsecrets = { k = 'hunter2', l = 'hunter3' }\n".to_owned(),
            &[(3, &format!("\"k\": {literal}")), (3, &format!("\"l\": {literal}"))],
        ),
        (
            destination("secret = ['hunter2', 'hunter3']"),
            &[(3, &format!("entry 1: {literal}")), (3, &format!("entry 2: {literal}"))],
        ),
        (
            source("secrets = ['env:SHORT', 'env:PLACEHOLDER']"),
            &[
                (3, "env:SHORT: the secret is shorter than 16 bytes"),
                (3, "env:PLACEHOLDER: the secret is a placeholder"),
            ],
        ),
        (
            destination("secret = ['env:SHORT',\n'env:BROKEN_KEY']"),
            &[
                (3, "env:SHORT: the secret is shorter than 16 bytes"),
                (4, "env:BROKEN_KEY: whsec_ stands in front of what is no base64"),
            ],
        ),
        (
            destination("retry = { schedule = ['5x', '1m', 5] }"),
            &[(3, "\"5x\": not a duration"), (3, "entry 3: a duration without a unit")],
        ),
        (destination("retry = { first = 5, cap = '1s' }"), &[(3, "a duration without a unit")]),
        (destination("retry = { schedule = ['80h'], give_up_after = 'x' }"), &[(3, "not a duration")]),
        (
            destination("retry = { schedule = ['5s'], first = '5s', factor = 2, cap = '1m' }"),
            &[(3, "given beside a schedule"); 3],
        ),
        (
            whole_source("allow_ips = ['10.0.0.1/8', '10.0.0.0/8', 'x']"),
            &[(4, "\"10.0.0.1/8\": has bits set behind its prefix"), (4, "\"x\": not an address range")],
        ),
        (
            "[ingest]\nhosts = ['a:1', 'b:2', 3]\n".to_owned(),
            &[(2, "entry 3: must be a text, not a whole number")],
        ),
        (
            "[ingest]\nhosts = ['a:1', 'b:2']\n".to_owned(),
            &[(2, "\"a:1\": not a host"), (2, "\"b:2\": not a host")],
        ),
        (
            destination("events = ['a.*.b', '']"),
            &[(3, "\"a.*.b\": not an event pattern"), (3, "\"\": not an event pattern")],
        ),
    ];
    for (text, problems) in cases {
        let problems: Vec<_> =
            problems.iter().map(|(line, message)| (*line, (*message).to_owned())).collect();
        assert_eq!(told(&text), problems, "{text}");
    }
}

#[test]
fn what_is_no_toml_is_told_with_the_key_it_is_about() {
    for (text, place, hint) in [
        (
            "[destinations.d]\nurl = 'a'\nurl = 'b'\n",
            "3: destinations.d.url: duplicate key",
            "keep one of the two",
        ),
        ("[sources.a]\n[sources.a]\n", "2: sources.a: duplicate key", "keep one of the two"),
        ("[admin]\ntoken = env:X\n", "2: admin.token: ", "write a text in quotes"),
        ("[ingest]\nlisten = 127.0.0.1:80\n", "2: ingest.listen: ", "write a text in quotes"),
        ("[ingest\nlisten = 1\n", "1: ingest: ", "expected `]`"),
        // What nobody knows may be a piece of a secret.
        ("[admin]\nhunter2 = env:X\n", "2: admin: ", "write a text in quotes"),
        ("[admin]\ntoken = [\nhunter2=\n", "3: admin: ", ""),
        ("hunter2\n", "1: key with no value", ""),
    ] {
        let said = parse(text).unwrap_err().to_string();
        assert!(said.contains(&format!("chaski.toml:{place}")) && said.contains(hint), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn a_misspelt_key_is_answered_with_the_nearest_or_with_its_place() {
    let said = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(
        said("[ingest]\nmax_bdy = '1MiB'\n"),
        "chaski.toml:2: ingest.max_bdy: unknown key; did you mean \"max_body\"?"
    );
    assert_eq!(
        said(&whole_source("algorithm = 'hmac-sha1'")),
        "chaski.toml:4: sources.a.algorithm: unknown key; it belongs in sources.a.signature"
    );
    assert_eq!(
        said(&whole_source("tolerence = '300s'")),
        "chaski.toml:4: sources.a.tolerence: unknown key; did you mean sources.a.signature.timestamp.past and .future?"
    );
    assert!(
        said("[nobody]\n")
            .contains("known here: ingest, admin, storage, log, telemetry, alerts, sources, destinations")
    );
}

#[test]
fn no_message_repeats_a_secret() {
    for text in [
        source("secrets = ['hunter2hunter2hunter2']"),
        source("secrets = 'hunter2hunter2hunter2'"),
        source("secrets = ['env:SHORT', 'env:PLACEHOLDER', 'env:LINES']"),
        with_url("https://u:hunter2@erp.test/x"),
        "[admin]\ntoken = 'hunter2' x\n".to_owned(),
        destination("auth = { bearer = 'env:LINES' }"),
    ] {
        let said = format!("{0} {0:?}", parse(&text).unwrap_err());
        for secret in ["hunter2", "12345678", "changeme", "X-B"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[test]
fn a_secret_on_its_way_out_may_be_gone() {
    let config = parse(&source("secrets = ['env:GOOD',\n'env:NOT_THERE']")).unwrap();
    assert!(
        matches!(&config.sources[0].secrets, chaski_ingest::source::Secrets::Any(list) if list.len() == 1)
    );
    let warning = config.warnings.iter().find(|warning| warning.line == 4).unwrap();
    assert!(warning.message.contains("NOT_THERE"), "{warning}");
}

#[test]
fn a_signing_secret_that_no_library_reads_is_said() {
    let warned = |secret| {
        let config = parse(&destination(&format!("secret = '{secret}'"))).unwrap();
        config
            .warnings
            .iter()
            .any(|warning| warning.line == 3 && warning.message.contains("Standard Webhooks"))
    };
    assert!(warned("env:GOOD"));
    assert!(!warned("env:KEY"));
}

#[test]
fn weak_secrets_are_taken_where_that_is_said_and_warned_of() {
    let config = parse(&source("secrets = ['env:GOOD',\n'env:SHORT']\nweak_secret = 'allow'")).unwrap();
    let warned: Vec<_> =
        config.warnings.iter().filter(|warning| warning.key == "sources.a.secrets").collect();
    assert!(
        matches!(&warned[..], [warning] if warning.line == 4 && warning.message.contains("shorter than 16 bytes")),
        "{warned:?}"
    );
}

#[test]
fn an_empty_secret_is_not_told_to_be_allowed() {
    for rest in ["", "weak_secret = 'allow'"] {
        let said = parse(&source(&format!("secrets = ['env:EMPTY']\n{rest}"))).unwrap_err().to_string();
        assert!(
            said.contains("the secret is empty; take 16 random bytes") && !said.contains("allow"),
            "{said}"
        );
    }
    let said = parse(&source("secrets = ['env:SHORT']")).unwrap_err().to_string();
    assert!(said.contains("weak_secret = \"allow\""), "{said}");
}

#[test]
fn a_reused_secret_is_named_and_may_be_allowed_within_one_environment() {
    let text = whole_source("[sources.b]\nprovider = 'svix'\nsecrets = ['env:OTHER', 'env:GOOD_AGAIN']");
    let said = parse(&text).unwrap_err().to_string();
    assert!(said.contains("env:GOOD_AGAIN holds a secret that sources.a uses"), "{said}");
    let lax = |environment: &str| {
        verdict(&whole_source(&format!(
            "[sources.b]\nprovider = 'pagoefectivo'\nsecrets = ['env:GOOD']\nweak_secret = 'allow'\nenvironment = '{environment}'"
        )))
    };
    assert_eq!(lax("production"), []);
    assert_eq!(lax("sandbox"), [("config_secret_reused", 6)]);
}

#[test]
fn a_secret_is_judged_by_the_key_that_stands_in_it() {
    let svix =
        |name: &str, secrets: &str| format!("[sources.{name}]\nprovider = 'svix'\nsecrets = {secrets}\n");
    let check = |text: &str| {
        let env = |name: &str| {
            Some(match name {
                "KEY" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
                "KEY_BARE" => "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
                // 24 bytes that are alike, and 12 bytes.
                "ALIKE" => format!("whsec_{}", "t7e3".repeat(8)),
                _ => "whsec_MfKQ9r8GKYqrTwjU".to_owned(),
            })
        };
        let read = Config::parse(text, Path::new("chaski.toml"), &env);
        let problems = read.err().map_or(Vec::new(), |errors| errors.0);
        problems.iter().map(|problem| (problem.reason.label(), problem.message.clone())).collect::<Vec<_>>()
    };
    let weak = |weakness: &str| vec![("config_secret_weak", weakness.to_owned())];
    assert_eq!(check(&svix("a", "['env:KEY']")), []);
    let alike = weak("env:ALIKE: decoded, the secret is one pattern repeated");
    assert_eq!(check(&svix("a", "['env:ALIKE']")), alike);
    let short = weak("env:SHORT: decoded, the secret is shorter than 16 bytes");
    assert_eq!(check(&svix("a", "['env:SHORT']")), short);
    let signing = "[destinations.d]\nurl = 'https://erp.test/x'\nsecret = 'env:ALIKE'\n";
    assert_eq!(check(signing), alike);
    let reused = |message: &str| vec![("config_secret_reused", message.to_owned())];
    assert_eq!(
        check(&svix("a", "['env:KEY', 'env:KEY_BARE']")),
        reused("env:KEY_BARE holds the same secret as env:KEY")
    );
    // The other one has its key in two spellings, or reads the same text as another key.
    let as_text = "[sources.a]\nprovider = 'pagoefectivo'\nsecrets = ['env:KEY_BARE']\n".to_owned();
    for other in [svix("a", "['env:KEY']"), as_text] {
        let [(reason, message)] = &check(&(other + &svix("b", "['env:KEY_BARE']")))[..] else {
            panic!("one problem");
        };
        assert_eq!(*reason, "config_secret_reused");
        assert!(message.starts_with("env:KEY_BARE holds a secret that sources.a uses"), "{message}");
    }
}

#[test]
fn a_secret_may_say_when_it_is_good() {
    let text = source(
        "secrets = [{ secret = 'env:GOOD', not_before = '2026-12-01T00:00:00-05:00' },\n\
         { secret = 'env:OTHER', not_after = 2020-12-31T00:00:00Z }]",
    );
    let config = parse(&text).unwrap();
    let moment = |text: &str| text.parse().ok();
    let spans: Vec<_> =
        config.sources[0].secrets.named().into_iter().map(|(name, dated)| (name, dated.validity)).collect();
    let validity = |not_before, not_after| chaski_ingest::source::Validity { not_before, not_after };
    assert_eq!(
        spans,
        [
            ("current".into(), validity(moment("2026-12-01T05:00:00Z"), None)),
            ("previous".into(), validity(None, moment("2020-12-31T00:00:00Z"))),
        ]
    );
    let warned: Vec<_> = config.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert!(warned.iter().any(|message| message.contains("good until 2020-12-31")), "{warned:?}");
    let by_id = "[sources.a]\nprovider = 'izipay'\nsecrets = { password = { secret = 'env:GOOD', not_before = '2020-01-01T00:00:00Z' } }\n";
    assert!(
        matches!(&parse(by_id).unwrap().sources[0].secrets, chaski_ingest::source::Secrets::ById(table) if table.contains_key("password"))
    );
}

#[test]
fn a_secret_is_as_old_as_it_says_or_as_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let written: jiff::Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
    for name in ["new", "old"] {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("k3J9-0aX7qLmZ-from-file-{name}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(written.into()).unwrap();
    }
    let text = source(
        "secrets = ['file:new', { secret = 'file:old', not_before = 2020-01-01T00:00:00Z }, 'env:GOOD',\n\
         { secret = 'env:OTHER', not_before = 2021-01-01T00:00:00Z }]",
    );
    let config = Config::parse(&text, &folder.path().join("chaski.toml"), &env).unwrap();
    let created: Vec<_> =
        config.sources[0].secrets.named().into_iter().map(|(_, dated)| dated.created).collect();
    let moment = |text: &str| text.parse().ok();
    assert_eq!(
        created,
        [Some(written), moment("2020-01-01T00:00:00Z"), None, moment("2021-01-01T00:00:00Z")]
    );
}

#[test]
fn a_secret_file_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "k3J9-0aX7qLmZ-from-a-file\n").unwrap();
    let text = source("secrets = ['file:secret']");
    let parse = || Config::parse(&text, &folder.path().join("chaski.toml"), &env);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(parse().unwrap_err().0[0].reason, Reason::SecretPermissions);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let secrets = parse().unwrap().sources.remove(0).secrets;
    assert!(
        matches!(secrets, chaski_ingest::source::Secrets::Any(list) if list[0].secret.expose() == b"k3J9-0aX7qLmZ-from-a-file")
    );
}

#[test]
fn a_file_that_is_missing_or_enormous_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chaski.toml");
    let reason = || Config::load(&path).unwrap_err().0[0].reason;
    assert_eq!(reason(), Reason::Unreadable);
    std::fs::write(&path, [0xff]).unwrap();
    assert_eq!(reason(), Reason::Syntax);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(50 << 20).unwrap();
    assert_eq!(reason(), Reason::TooLarge);
    assert_eq!(verdict(&"#".repeat(FILE_BYTES_MAX + 1)), [("config_too_large", 0)]);
}

#[test]
fn an_empty_file_is_a_configuration_with_warnings() {
    let config = parse("").unwrap();
    assert_eq!(config.ingest.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.ingest.body_bytes_max, 256 * 1024);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.ingest.limits, Limits::default());
    assert_eq!(config.ingest.proxies, Proxies::default());
    assert_eq!(config.storage.kind, StorageKind::Embedded { path: "chaski-data".into() });
    assert_eq!(config.storage.retention, Duration::from_hours(720));
    assert_eq!(config.warnings.len(), 2);
}

#[test]
fn a_signature_that_covers_less_than_the_body_is_warned_of_and_what_it_covers_is_named() {
    let own = |template: &str| {
        format!(
            "[sources.a]\nsecrets = ['env:GOOD']\n[sources.a.signature]\nalgorithm = 'hmac-sha256'\nfrom = 'header:x'\n\
             encoding = 'hex'\ntemplate = '{template}'\n[sources.a.event]\nid = ['header:x-id']\ncontent = 'any'\n"
        )
    };
    let preset = |name: &str| format!("[sources.a]\nprovider = '{name}'\nsecrets = ['env:GOOD']\n");
    let izipay = "[sources.a]\nprovider = 'izipay'\nsecrets = { password = 'env:GOOD' }\n".to_owned();
    let whole: Option<&str> = None;
    for (text, said) in [
        (own("{body}"), whole),
        (own("{json:/a}.{body}"), whole),
        (preset("pagoefectivo"), whole),
        (own("{form:amount}|{form:order}|{form:amount}"), Some("only the fields form:amount, form:order:")),
        (own("{header:x-id}[{json:/a}]"), Some("only the fields json:/a:")),
        (own("{header:x-id}"), Some("take an event as a hint")),
        (own("{header:x-id}[{query:no}{body}]"), Some("take an event as a hint")),
        (preset("mercadopago"), Some("take an event as a hint")),
        (izipay, Some("only the fields form:kr-answer:")),
    ] {
        let warnings = parse(&text).unwrap().warnings;
        let found = warnings.iter().find(|warning| warning.message.starts_with("the body is not signed"));
        match said {
            None => assert_eq!(found.map(ToString::to_string), None, "{text}"),
            Some(said) => {
                assert!(found.is_some_and(|warning| warning.message.contains(said)), "{text}{warnings:?}");
            }
        }
    }
}

#[test]
fn who_believes_everybody_is_warned() {
    let config =
        parse("[ingest]\nproxy_protocol_from = ['0.0.0.0/0']\nforwarded_for_from = ['10.0.0.0/8']\n")
            .unwrap();
    assert_eq!(config.ingest.proxies.forwarded_for_from[0].prefix_bits, 8);
    let warned =
        config.warnings.iter().filter(|warning| warning.to_string().contains("ingest.proxy_protocol_from"));
    assert_eq!(warned.count(), 1, "{:?}", config.warnings);
}

/// The sample of the contract, its Kafka parts left out.
const CONTRACT: &str = include_str!("contract.toml");

#[test]
fn the_sample_of_the_contract_is_a_configuration() {
    let env = |name: &str| Some(format!("{name}-k3J9-0aX7qLmZ"));
    let config =
        Config::parse(CONTRACT, Path::new("chaski.toml"), &env).unwrap_or_else(|errors| panic!("{errors}"));
    let acme = &config.sources[1];
    assert_eq!((&*acme.name, &*acme.path), ("acme", "/in/acme"));
    assert_eq!(acme.scheme.signature.template, "{ts}.{body}");
    assert_eq!(acme.scheme.signature.timestamp.as_ref().unwrap().past, Duration::from_secs(300));
    let orders = &config.destinations[0];
    assert_eq!(orders.url, "http://127.0.0.1:9001/hooks");
    assert_eq!(orders.sources, [Arc::<str>::from("pagoefectivo")]);
    assert_eq!(orders.rate_per_second, Some(100.0));
    assert_eq!(orders.retry.latest_times(2), [5, 20].map(Duration::from_secs));
}

#[test]
fn a_preset_is_overridden_field_by_field() {
    let config =
        parse(&whole_source("[sources.a.signature]\nbody = ['raw']\n[sources.a.reply]\nbody = 'success'"))
            .unwrap();
    let scheme = &config.sources[0].scheme;
    assert_eq!(
        (scheme.signature.from.as_str(), scheme.signature.body.as_slice()),
        ("header:pe-signature", ["raw".to_owned()].as_slice())
    );
    assert_eq!((scheme.reply.status, scheme.reply.body.as_deref()), (200, Some("success")));
}

#[test]
fn a_window_is_an_hour_at_most_or_that_of_the_preset() {
    let of = |provider: &str, window: &str| {
        let secrets = "secrets = ['env:GOOD']\n[sources.a.signature.const]\nx_login = 'l'\n";
        verdict(&format!(
            "[sources.a]\nprovider = '{provider}'\n{secrets}[sources.a.signature.timestamp]\n{window}\n"
        ))
    };
    for (provider, window) in [
        ("dlocal", "past = '2h'"),
        ("dlocal", "past = '1h'\nfuture = '1h'"),
        ("pagsmile", "past = '24h'"),
        ("stripe", "past = '1h'"),
    ] {
        assert_eq!(of(provider, window), [], "{provider}: {window}");
    }
    for (provider, window) in [
        ("dlocal", "past = '3h'"),
        ("dlocal", "future = '2h'"),
        ("stripe", "past = '2h'"),
        ("pagsmile", "past = '2d'"),
    ] {
        assert_eq!(of(provider, window), [("config_range", 7)], "{provider}: {window}");
    }
}

#[test]
fn an_answer_without_a_body_may_have_an_empty_one() {
    for reply in ["status = 204", "status = 205\nbody = ''", "status = 202\nbody = 'ok'"] {
        assert_eq!(verdict(&whole_source(&format!("[sources.a.reply]\n{reply}"))), [], "{reply}");
    }
}

#[test]
fn a_clock_that_is_ahead_has_one_bound() {
    for (given, shown) in [("90m", "1h30m"), ("50h", "50h")] {
        let timestamp = format!(
            "[sources.a.signature.timestamp]\nfrom = 'header:t'\nformat = 'unix'\nfuture = '{given}'"
        );
        assert_eq!(
            parse(&described(&timestamp)).unwrap_err().to_string(),
            format!(
                "chaski.toml:11: sources.a.signature.timestamp.future: must be from 1s to 1h, not {shown}"
            )
        );
    }
    let settings = settings();
    let future = settings.iter().find(|setting| setting.key.ends_with(".timestamp.future")).unwrap();
    assert_eq!(future.takes, "a duration from 1s to 1h");
}

#[test]
fn every_preset_loads_with_what_only_a_merchant_has() {
    let env = |name: &str| match name {
        "BASIC" => Some("chaski:0aX7qLmZk3J9".to_owned()),
        "HEX" => Some("4f1c0b7a9e2d4c6f8a1b3d5e7f90a2b4".to_owned()),
        _ => None,
    };
    for name in chaski_ingest::presets::names() {
        let spec = chaski_ingest::presets::load(name).unwrap();
        let secret = if spec.signature.algorithm == "http-basic" { "env:BASIC" } else { "env:HEX" };
        let secrets = match spec.signature.key.select {
            Some(_) => format!("{{ k = '{secret}' }}"),
            None => format!("['{secret}']"),
        };
        let constants = "[sources.a.signature.const]\nx_login = 'login'";
        let text = format!("[sources.a]\nprovider = '{name}'\nsecrets = {secrets}\n{constants}\n");
        let config = Config::parse(&text, Path::new("chaski.toml"), &env)
            .unwrap_or_else(|errors| panic!("{name}: {errors}"));
        let on_conflict = spec.event.on_conflict.unwrap_or(chaski_common::storage::OnConflict::Quarantine);
        assert_eq!(config.sources[0].on_conflict, on_conflict, "{name}");
    }
}

#[test]
fn what_the_table_calls_a_default_is_what_a_scheme_defaults_to() {
    use settings::{FILE, Section};
    let root = |name: &str| {
        FILE.section("sources").and_then(|sources| sources.each).and_then(|each| each.section(name)).unwrap()
    };
    let text = "[signature]\nalgorithm = 'ed25519'\nfrom = 'header:s'\n[signature.timestamp]\nfrom = 'header:t'\nformat = 'unix'";
    let scheme: chaski_ingest::source::SchemeSpec = toml::from_str(text).unwrap();
    let scheme = toml::Table::try_from(&scheme).unwrap();
    fn agree(section: &Section, table: &toml::Table) {
        for setting in section.settings {
            let Some(default) = setting.default else { continue };
            let default = match default
                .trim_matches('"')
                .strip_suffix('m')
                .and_then(|minutes| minutes.parse::<i64>().ok())
            {
                Some(minutes) => toml::Value::Integer(minutes * 60),
                None => format!("v = {default}").parse::<toml::Table>().unwrap().remove("v").unwrap(),
            };
            assert_eq!(table.get(setting.key), Some(&default), "{}", setting.key);
        }
        for inner in section.sections {
            agree(inner, table[inner.name].as_table().unwrap());
        }
    }
    for part in ["signature", "event", "reply"] {
        agree(root(part), scheme[part].as_table().unwrap());
    }
}

#[test]
fn check_explains_everything_and_shows_no_secret() {
    let env = |name: &str| Some(format!("{name}-k3J9-0aX7qLmZ"));
    let config = Config::parse(CONTRACT, Path::new("chaski.toml"), &env).unwrap();
    let text = crate::command::check::run(&config, false);
    for part in [
        "past = \"5m\"",
        "http://127.0.0.1:8080/in/pagoefectivo",
        "from = \"header:pe-signature\"",
        "signed timestamp, at most 5m old and 5m ahead",
        "20s, 1m5s",
        "deduplication (72h) is the replay defence",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&crate::command::check::run(&config, true)).unwrap();
    assert_eq!(json["destinations"][0]["auth"], "bearer");
    assert_eq!(json["sources"][1]["freshness"], "signed");
    assert!(
        !text.contains("0aX7qLmZ")
            && !json.to_string().contains("0aX7qLmZ")
            && !format!("{config:?}").contains("0aX7qLmZ")
    );
}

#[test]
fn check_warns_of_an_id_that_is_not_signed() {
    let env = |name: &str| Some(format!("{name}-k3J9-0aX7qLmZ"));
    for (provider, warns) in [
        ("github", "not signed: id (header:x-github-delivery), type (header:x-github-event); "),
        (
            "shopify",
            "not signed: id (header:x-shopify-topic), id (header:x-shopify-event-id), type (header:x-shopify-topic); ",
        ),
        ("stripe", ""),
        ("pagoefectivo", ""),
        ("paddle", ""),
    ] {
        let text = format!("[sources.a]\nprovider = '{provider}'\nsecrets = ['env:PE_SECRET']");
        let config = Config::parse(&text, Path::new("chaski.toml"), &env).unwrap();
        let text = crate::command::check::run(&config, false);
        assert_eq!(text.contains("not signed: "), !warns.is_empty(), "{text}");
        assert!(text.contains(warns), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&crate::command::check::run(&config, true)).unwrap();
        assert_eq!(json["sources"][0]["id_is_signed"], warns.is_empty(), "{provider}");
        let is_defence = text.contains("deduplication (72h) is the replay defence");
        assert!(!is_defence || warns.is_empty(), "{text}");
    }
}

#[test]
fn check_says_a_rate_as_the_file_does() {
    let config = parse(&destination("rate = '1/h'")).unwrap();
    let text = crate::command::check::run(&config, false);
    assert!(text.contains("at once, at most 1/h, "), "{text}");
}

#[test]
fn check_says_how_many_retries_it_does_not_list() {
    let config = parse(&destination("retry = { first = '1s', factor = 1, give_up_after = '1h' }")).unwrap();
    let text = crate::command::check::run(&config, false);
    assert!(text.contains("1m39s, 1m40s, and 3500 more\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&crate::command::check::run(&config, true)).unwrap();
    assert_eq!(json["destinations"][0]["retries_more"], 3500);
    let all = parse(&destination("retry = { first = '1s', factor = 2, give_up_after = '1h' }")).unwrap();
    assert!(!crate::command::check::run(&all, false).contains(" more"));
}

proptest! {
    #[test]
    fn no_text_makes_the_reading_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, "[\\[\\]{}\"'=.,# \n0-9a-z\u{e9}\\\\:/-]{0,8}"), 1..8)) {
        let mut text = reference();
        for (at, length, insert) in edits {
            let boundary = |mut offset: usize| { while !text.is_char_boundary(offset) { offset -= 1; } offset };
            let start = boundary(at.index(text.len() + 1));
            let end = boundary((start + length).min(text.len()));
            text.replace_range(start..end, &insert);
        }
        if let Err(errors) = parse(&text) {
            prop_assert!(!errors.0.is_empty());
            let lines = text.lines().count() + 1;
            prop_assert!(errors.0.iter().all(|problem| problem.line <= lines && !problem.to_string().contains('\n')));
        }
    }
}

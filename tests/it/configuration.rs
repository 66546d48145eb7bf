//! The configuration: refused whole and in words that let its owner mend it, explained without a secret.

use crate::harness::{DESTINATION_SECRET, Destination, Layout, PE_SECRET, Receiver, Site, Storage};

#[test]
fn every_problem_is_listed_with_its_line_and_key() {
    let site = Site::new(&Layout::default());
    let text = "\
[ingest]
lisetn = \"127.0.0.1:8080\"
max_body = \"lots\"
[admin]
listen = \"0.0.0.0:8081\"
[storage]
kind = \"embedded\"
retention = \"30 apples\"
[sources.pagoefectivo]
provider = \"pagoefectivos\"
secrets = [\"env:PE_SECRET\"]
[sources.other]
provider = \"pagoefectivo\"
secrets = [\"env:NOT_SET_ANYWHERE\"]
[destinations.orders]
url = \"gopher://example\"
sources = [\"pagoefectvo\"]
";
    site.write(text);
    // (line, key, what helps)
    let problems = [
        (2, "ingest.lisetn", "listen"),
        (3, "ingest.max_body", ""),
        (5, "admin", "token"),
        (8, "storage.retention", ""),
        (10, "sources.pagoefectivo.provider", "pagoefectivo"),
        (14, "sources.other.secrets", "NOT_SET_ANYWHERE"),
        (16, "destinations.orders.url", "http"),
        (17, "destinations.orders.sources", ""),
    ];
    for command in ["check", "run"] {
        let told = site.command(&[command]);
        told.exits(78);
        assert!(told.stdout.is_empty(), "{told:?}");
        for (line, key, help) in problems {
            let place = format!("chaski.toml:{line}: {key}");
            let said = told.stderr.lines().find(|said| said.contains(&place));
            assert!(said.is_some_and(|said| said.contains(help)), "{command}: {place} … {help}: {told:#?}");
        }
    }
    assert!(!site.store().exists(), "nothing was begun");
}

#[test]
fn what_a_storage_cannot_do_is_refused_at_its_line() {
    let site = Site::on(Storage::File, &Layout::default());
    let text = site.toml(&Layout::default());
    let line = 1 + text.lines().position(|line| line == "kind = \"embedded\"").unwrap();
    for (text, place) in [
        (text.clone(), format!("chaski.toml:{line}: storage.kind: ")),
        (text.replace("kind = \"embedded\"\n", ""), format!("chaski.toml:{}: storage.kind: ", line - 1)),
        (
            text.replace("[storage]\nkind = \"embedded\"\npath = \"store\"\n", ""),
            "chaski.toml: storage.kind: ".to_owned(),
        ),
    ] {
        site.write(&text);
        for command in ["ingest", "dispatch", "topics"] {
            let told = site.command(&[command]);
            assert!(told.exits(78).stderr.contains(&place), "{command}, {place}: {told:?}");
        }
    }
}

#[test]
fn a_file_that_is_missing_or_is_no_toml_is_refused() {
    let site = Site::new(&Layout::default());
    site.bare(&["check", "-c", "nowhere.toml"]).exits(78);
    site.write("[ingest\nlisten = 1\n");
    let told = site.command(&["check"]);
    assert!(told.exits(78).stderr.contains("chaski.toml:1"), "{told:?}");
}

#[test]
fn a_weak_secret_and_a_readable_secret_file_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new(&Layout::default()).with_env("WEAK", "changeme");
    let layout = |secret: &str| site.toml(&Layout::default()).replace("env:PE_SECRET", secret);
    site.write(&layout("env:WEAK"));
    let told = site.command(&["check"]);
    assert!(told.exits(78).stderr.contains("secret"), "{told:?}");
    assert!(!told.stderr.contains("changeme"), "{told:?}");

    std::fs::write(site.path("secret"), PE_SECRET).unwrap();
    std::fs::set_permissions(site.path("secret"), std::fs::Permissions::from_mode(0o644)).unwrap();
    site.write(&layout("file:secret"));
    site.command(&["check"]).exits(78);
    std::fs::set_permissions(site.path("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    site.command(&["check"]).ok();

    site.write(&site.toml(&Layout::default()).replace("env:PE_SECRET", PE_SECRET));
    let told = site.command(&["check"]);
    told.exits(78);
    assert!(!told.stderr.contains(PE_SECRET), "a secret in the file is not repeated: {told:?}");
}

#[test]
fn check_explains_the_file_and_shows_no_secret() {
    let receiver = Receiver::start();
    let retry = "first = \"5s\"\nfactor = 3\ncap = \"6h\"\ngive_up_after = \"72h\"";
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver).retrying(retry)]));
    let text = site.command(&["check"]);
    for word in [
        "pagoefectivo",
        "/in/pagoefectivo",
        "orders",
        &receiver.url(),
        "hmac-sha256",
        "pe-signature",
        "72h",
        "5s",
        "20s",
        site.storage.kind(),
    ] {
        assert!(text.ok().stdout.contains(word), "{word}: {}", text.stdout);
    }
    let json = site.command(&["check", "--json"]);
    let value = json.json();
    assert_eq!(value["sources"][0]["freshness"], "none", "nothing PagoEfectivo sends is dated");
    assert_eq!(value["sources"][0]["destinations"], serde_json::json!(["orders"]));
    for secret in [PE_SECRET, DESTINATION_SECRET] {
        assert!(!text.stdout.contains(secret) && !json.stdout.contains(secret));
    }
}

#[test]
fn the_reference_is_a_configuration_and_the_schema_is_json() {
    let site = Site::new(&Layout::default());
    let reference = site.bare(&["config", "reference"]);
    site.write(&reference.ok().stdout);
    let names: Vec<String> = reference
        .stdout
        .split("\"env:")
        .skip(1)
        .filter_map(|rest| rest.split('"').next().map(str::to_owned))
        .collect();
    let site = names.iter().fold(site, |site, name| {
        if name == "PE_SECRET" { site } else { site.with_env(name, &format!("{name}-0aX7qLmZk3J9")) }
    });
    site.command(&["check"]).ok();
    let schema = site.bare(&["config", "schema"]).json();
    assert!(
        schema["properties"]["sources"].is_object() && schema["properties"]["destinations"].is_object(),
        "{schema}"
    );
}

//! What is written in the file: refused before anything is begun, under its reason, or at a reload with the old file
//! staying in force.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::case::Case;
use crate::harness::{
    Destination, Layout, PE_SECRET, Receiver, Reply, Site, certificate, eventually, expire, payment,
};

pub(super) const GROUP: &str = "config";

/// A valid file, and a site on which nothing runs.
struct Draft {
    site: Site,
    layout: Layout,
    toml: String,
}

impl Draft {
    fn new(receiver: &Receiver) -> Self {
        let layout = Layout::to([Destination::new("orders", receiver)]);
        let site = Site::new(&layout).with_env("SECRET_A", "Rk5sWq2NzYb8MvT1XgLc7JhD4PfAeUo9iQ3xZtVy");
        let toml = site.toml(&layout);
        Self { site, layout, toml }
    }

    /// In one of the sections of the valid file.
    fn set(&mut self, section: &str, line: &str) {
        let head = format!("[{section}]\n");
        assert!(self.toml.contains(&head), "{section}");
        self.toml = self.toml.replacen(&head, &format!("{head}{line}\n"), 1);
    }

    fn replace(&mut self, old: &str, new: &str) {
        assert!(self.toml.contains(old), "{old}");
        self.toml = self.toml.replacen(old, new, 1);
    }

    fn env(self, name: &str, value: &str) -> Self {
        Self { site: self.site.with_env(name, value), ..self }
    }

    /// One key of a fragment, in the words of this gateway's file.
    fn write(mut self, key: &str, value: &Value) -> Self {
        let text = value.as_str().unwrap_or_default();
        match key {
            "source.secret" => return self.env("PE_SECRET", text),
            "source.a.secret"
            | "source.b.secret"
            | "source.b.environment"
            | "source.a.path"
            | "source.b.path" => {
                let name = &key["source.".len()..][..1];
                let section = format!("sources.{name}");
                if !self.toml.contains(&format!("[{section}]")) {
                    self.toml += &format!(
                        "\n[{section}]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n"
                    );
                }
                match key.rsplit('.').next() {
                    Some("secret") => return self.env("SECRET_A", PE_SECRET),
                    Some(other) => self.set(&section, &format!("{other} = {value}")),
                    None => {}
                }
            }
            "source.secret_file" => {
                std::fs::write(self.site.path(text), PE_SECRET).unwrap();
                self.replace("env:PE_SECRET", &format!("file:{text}"));
            }
            "mode" => {
                let mode = u32::from_str_radix(text, 8).unwrap();
                std::fs::set_permissions(self.site.path("f"), Permissions::from_mode(mode)).unwrap();
            }
            "source.tolerance" => {
                self.toml += &format!(
                    "\n[sources.dated]\nprovider = \"pagoefectivo-xdate\"\nsecrets = [\"env:PE_SECRET\"]\n\
                     [sources.dated.signature.timestamp]\npast = {value}\n"
                );
            }
            "source.tolerence" => self.set("sources.pagoefectivo", &format!("tolerence = {value}")),
            "source.sender_retry_window" => {
                self.set("sources.pagoefectivo", &format!("sender_retry_window = {value}"));
            }
            "dedup.window" => self.set("sources.pagoefectivo", &format!("dedup_window = {value}")),
            "raw" => self.toml += &format!("\n{text}"),
            "raw_gen" => assert_eq!(text, "pad"),
            "bytes" => self.toml += &"# pad\n".repeat(usize::try_from(value.as_u64().unwrap()).unwrap() / 6),
            "edge.max_body" => self.set("ingest", &format!("max_body = {value}")),
            "destination.url" => {
                let url = format!("url = \"{}\"", self.layout.destinations[0].url);
                self.replace(&url, &format!("url = {value}"));
            }
            _ if key.starts_with("destination.headers.") => {
                let name = key.rsplit('.').next().unwrap();
                let auth = format!("auth = {{ header = {{ name = \"{name}\", value = \"env:SECRET_A\" }} }}");
                self.set("destinations.orders", &auth);
                return self.env("SECRET_A", text);
            }
            "destination.retry" => {
                let retry = self.layout.destinations[0].retry.clone();
                self.replace(&retry, &format!("schedule = {value}"));
            }
            "dispatch.proxy" => self.toml += &format!("\n[dispatch]\nproxy = {value}\n"),
            "metrics.listen" => {
                let (edge, admin) = (self.site.edge, self.site.admin);
                self.replace(&format!("listen = \"{admin}\""), &format!("listen = \"{edge}\""));
            }
            "tls.cert" => {
                certificate(&self.site, "server", None, &["subjectAltName=IP:127.0.0.1"]);
                if text == "expired" {
                    expire(&self.site, "server");
                }
                self.toml += "\n[ingest.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n";
            }
            // Something that runs already has the folder.
            "spool.dir" => assert_eq!(text, "locked"),
            other => panic!("no key of the file is meant by {other}"),
        }
        self
    }
}

fn fragment(case: &Case) -> impl Iterator<Item = (&String, &Value)> {
    case.build["fragment"].as_object().unwrap().iter()
}

/// Whether the file is refused under the reason of the case, both when it is checked and when it is run.
fn judge(case: &Case, receiver: &Receiver) -> Result<(), String> {
    // A file mode is set on what is there.
    let (modes, others): (Vec<_>, Vec<_>) = fragment(case).partition(|(key, _)| *key == "mode");
    let draft = others
        .into_iter()
        .chain(modes)
        .fold(Draft::new(receiver), |draft, (key, value)| draft.write(key, value));
    let site = &draft.site;
    site.write(&draft.toml);
    let (expect, is_locked) = (&case.expect, fragment(case).any(|(key, _)| key == "spool.dir"));
    let holder = is_locked.then(|| site.start());
    if holder.is_none() {
        let told = site.command(&["check", "--json"]);
        let said: Value = serde_json::from_str(&told.stdout).unwrap_or_default();
        let problems = said["problems"].as_array().cloned().unwrap_or_default();
        let named = problems.iter().find(|problem| problem["reason"] == expect.reason.as_str());
        let Some(named) = named else {
            return Err(format!("not refused as {}: {told:?}", expect.reason));
        };
        let is_about_the_file = ["config_syntax", "config_too_large"].contains(&expect.reason.as_str());
        if told.code != Some(i32::from(expect.status))
            || (!is_about_the_file && (named["key"] == "" || named["line"] == 0))
        {
            return Err(format!("not refused in its place: {told:?}"));
        }
    }
    if is_locked {
        // The addresses of what runs are not what is asked about.
        let toml = draft.toml.replace(&site.edge.to_string(), "127.0.0.1:0");
        site.write(&toml.replace(&site.admin.to_string(), "127.0.0.1:0"));
    }
    let told = site.command(&["run"]);
    if told.code != Some(i32::from(expect.status)) || told.stderr.is_empty() || !told.stdout.is_empty() {
        return Err(format!("it runs, or says nothing: {told:?}"));
    }
    let secrets = fragment(case).filter(|(key, _)| key.contains("secret") || key.contains("headers"));
    for secret in secrets.filter_map(|(_, value)| value.as_str()).filter(|secret| secret.len() > 1) {
        if told.stderr.contains(secret) {
            return Err(format!("what is secret is shown: {told:?}"));
        }
    }
    if let Some(holder) = &holder {
        holder.accept(&payment(1));
    } else if site.store().exists() {
        return Err("something was begun".to_owned());
    }
    Ok(())
}

fn is_reload(case: &Case) -> bool {
    case.build["fragment"]["signal"] == "HUP"
}

#[test]
fn a_file_that_cannot_be_meant_is_refused_under_its_reason() {
    let receiver = Receiver::start();
    let wrong: Vec<String> = super::played(GROUP)
        .filter(|case| !is_reload(case))
        .filter_map(|case| {
            let judged = judge(&case, &receiver);
            judged.err().map(|what| format!("{} {}: {what:.1500}", case.id, case.description))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_reload_that_cannot_be_meant_leaves_the_old_file_in_force() {
    for (number, case) in super::played(GROUP).filter(is_reload).enumerate() {
        let receiver = Receiver::scripted(|_| Reply::status(503));
        let layout = Layout::to([Destination::new("orders", &receiver)]);
        let site = Site::new(&layout);
        let gateway = site.start();
        // Several, so that they are in several partitions, where there are any.
        let ids: Vec<String> = (0..8).map(|n| gateway.accept(&payment(n))).collect();
        let fragment = &case.build["fragment"];
        match fragment["raw"].as_str() {
            Some(raw) => site.write(raw),
            None => {
                assert_eq!(fragment["remove"], "source.a");
                site.write(&site.toml(&layout).replace("[sources.pagoefectivo]", "[sources.other]"));
            }
        }
        gateway.signal(fragment["signal"].as_str().unwrap());
        eventually(&format!("{}: the reload to be refused", case.id), || {
            (gateway.count("chaski_config_last_reload_successful", &[]) == 0).then_some(())
        });
        assert!(gateway.exited().is_none(), "{}", case.id);
        gateway.accept(&payment(100 + number as u64));
        receiver.becomes(|_| Reply::status(200));
        ids.iter().for_each(|id| _ = receiver.wait_for(id));
        gateway.stop();
    }
}

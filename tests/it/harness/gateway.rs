//! A site: a folder with configuration and store, and the real binary run on it.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use chaski_common::storage::kafka::testing::free_port;
use serde_json::Value;
use tempfile::TempDir;

use super::sender::{Callback, DESTINATION_SECRET, PE_PATH, PE_SECRET};
use super::storage::Storage;
use super::{Answer, Receiver, eventually, get, post, within};

const BINARY: &str = env!("CARGO_BIN_EXE_chaski");
/// How long a command may take.
const COMMAND: std::time::Duration = std::time::Duration::from_secs(60);

/// What stands in the configuration beside the addresses.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    /// Lines of `[ingest]`, `[storage]` and `[sources.pagoefectivo]`.
    pub(crate) ingest: String,
    pub(crate) storage: String,
    pub(crate) source: String,
    pub(crate) destinations: Vec<Destination>,
    /// Whole sections.
    pub(crate) more: String,
}

impl Layout {
    pub(crate) fn to(destinations: impl IntoIterator<Item = Destination>) -> Self {
        Self { destinations: destinations.into_iter().collect(), ..Self::default() }
    }
}

#[derive(Clone)]
pub(crate) struct Destination {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    /// Lines of its section.
    pub(crate) settings: String,
    /// Lines of its retry section.
    pub(crate) retry: String,
}

impl Destination {
    /// With retries that a test can wait for.
    pub(crate) fn new(name: &'static str, receiver: &Receiver) -> Self {
        let retry = "first = \"100ms\"\nfactor = 2\ncap = \"1s\"\ngive_up_after = \"10m\"".to_owned();
        Self { name, url: receiver.url(), settings: "timeout = \"2s\"".to_owned(), retry }
    }

    pub(crate) fn with(mut self, line: &str) -> Self {
        self.settings.push('\n');
        self.settings.push_str(line);
        self
    }

    pub(crate) fn retrying(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.retry);
        self
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Told {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        self.ok();
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("not JSON ({error}): {self:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> &Self {
        self.exits(0)
    }

    #[track_caller]
    pub(crate) fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

pub(crate) struct Site {
    folder: TempDir,
    pub(crate) storage: Storage,
    pub(crate) edge: SocketAddr,
    pub(crate) admin: SocketAddr,
    env: Vec<(String, String)>,
}

impl Site {
    /// On the storage that this run is about.
    #[track_caller]
    pub(crate) fn new(layout: &Layout) -> Self {
        Self::on(Storage::of_this_run(), layout)
    }

    /// With its topics made, if it needs any.
    #[track_caller]
    pub(crate) fn on(storage: Storage, layout: &Layout) -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            storage,
            edge: loopback(free_port()),
            admin: loopback(free_port()),
            env: vec![
                ("PE_SECRET".to_owned(), PE_SECRET.to_owned()),
                ("DESTINATION_SECRET".to_owned(), DESTINATION_SECRET.to_owned()),
                // Who keeps the clock of the machine that runs the tests is nobody's business.
                ("PATH".to_owned(), "/nowhere".to_owned()),
            ],
        };
        site.write(&site.toml(layout));
        if let Storage::Topics(_) = site.storage {
            site.command(&["topics", "apply"]).ok();
        }
        site
    }

    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the store on a disk that can be made to fail, see `faultfs.c`.
    #[track_caller]
    pub(crate) fn on_faulty_disk(self) -> Self {
        let (store, control) = (self.store(), self.path("fault"));
        self.in_front_of_the_system("faultfs.c")
            .with_env("FAULTFS_FOLDER", text(&store))
            .with_env("FAULTFS_CONTROL", text(&control))
    }

    /// Lets a library answer some of the system's calls: its source, beside the journeys.
    #[track_caller]
    pub(crate) fn in_front_of_the_system(self, source: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(source);
        let library = self.path("library.so");
        super::tool("cc", &["-shared", "-fPIC", "-O1", "-o", text(&library), text(&source), "-ldl"]);
        self.with_env("LD_PRELOAD", text(&library))
    }

    /// `full`, `write`, `sync` or `slow`.
    pub(crate) fn disk_fails(&self, fault: &str, is_on: bool) {
        let file = self.path(&format!("fault.{fault}"));
        if is_on { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("chaski.toml")
    }

    /// Replaces the configuration, as an operator's tool would: at once.
    pub(crate) fn write(&self, text: &str) {
        let new = self.path("chaski.toml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.config()).unwrap();
    }

    pub(crate) fn rewrite(&self, layout: &Layout) {
        self.write(&self.toml(layout));
    }

    pub(crate) fn toml(&self, layout: &Layout) -> String {
        let Layout { ingest, storage, source, destinations, more } = layout;
        let mut text = format!(
            "[ingest]\nlisten = \"{}\"\n{ingest}\n[admin]\nlisten = \"{}\"\n[storage]\n{}\n{storage}\n{}\n\
             [log]\nformat = \"json\"\n[sources.pagoefectivo]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n{source}\n",
            self.edge,
            self.admin,
            self.storage.lines(),
            self.storage.sections(),
        );
        for Destination { name, url, settings, retry } in destinations {
            let _ = writeln!(
                text,
                "[destinations.{name}]\nurl = \"{url}\"\nsecret = \"env:DESTINATION_SECRET\"\n{settings}\n[destinations.{name}.retry]\n{retry}"
            );
        }
        text + more
    }

    fn chaski(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env_remove("RUST_LOG").envs(self.env.iter().map(|(name, value)| (name, value)));
        command
            .current_dir(self.folder.path())
            // A process that is killed leaves its scratch files.
            .env("TMPDIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command on this site's configuration, to its end.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Told {
        let mut command = self.chaski();
        finish(command.arg("-c").arg(self.config()).args(arguments).spawn().unwrap())
    }

    /// Runs a command that prints to where it is told, to its end.
    #[track_caller]
    pub(crate) fn command_into(&self, arguments: &[&str], stdout: Stdio) -> Told {
        let mut command = self.chaski();
        finish(command.arg("-c").arg(self.config()).args(arguments).stdout(stdout).spawn().unwrap())
    }

    /// Runs a command as it is written, without a configuration.
    #[track_caller]
    pub(crate) fn bare(&self, arguments: &[&str]) -> Told {
        finish(self.chaski().args(arguments).spawn().unwrap())
    }

    /// Starts the gateway and waits until it takes callbacks.
    #[track_caller]
    pub(crate) fn start(&self) -> Gateway {
        let gateway = self.spawn();
        gateway.wait_until_running();
        gateway
    }

    /// Starts the gateway and waits for nothing.
    pub(crate) fn spawn(&self) -> Gateway {
        self.spawn_as(&["run"])
    }

    /// Starts one half of a gateway, and waits for nothing.
    pub(crate) fn spawn_as(&self, role: &[&str]) -> Gateway {
        let mut child = self.chaski().args(role).arg("-c").arg(self.config()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Gateway { edge: self.edge, admin: self.admin, child: Mutex::new(child), log, reader: Some(reader) }
    }
}

/// A gateway that was started; killed by its own pid when it is dropped.
pub(crate) struct Gateway {
    pub(crate) edge: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Mutex<Child>,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Gateway {
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The fields of the first log line with this message.
    pub(crate) fn logged(&self, message: &str) -> Option<Value> {
        let said = |line: &String| {
            serde_json::from_str::<Value>(line).ok().filter(|line| line["message"] == message)
        };
        self.log.lock().unwrap().iter().find_map(said)
    }

    #[track_caller]
    pub(crate) fn wait_until_running(&self) {
        eventually("chaski is running", || {
            assert!(self.exited().is_none(), "it ended instead of running: {:#?}", self.log());
            self.logged("chaski is running")
        });
    }

    /// Its exit, if it has ended.
    pub(crate) fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_exit(&self) -> ExitStatus {
        within(COMMAND, "the end of the process", || self.exited())
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.lock().unwrap().id();
        // The child is not reaped before this test does so: the pid is its own.
        super::tool("sh", &["-c", &format!("kill -{name} {pid}")]);
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// SIGTERM, and an end in order.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.end();
    }

    /// The same, and what it said stays.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.signal("TERM");
        let status = self.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{:#?}", self.log());
    }

    pub(crate) fn try_send(&self, callback: &Callback) -> std::io::Result<Answer> {
        let headers = [("content-type", "application/json"), ("pe-signature", &*callback.signature)];
        post(self.edge, PE_PATH, &headers, callback.body.as_bytes())
    }

    #[track_caller]
    pub(crate) fn send(&self, callback: &Callback) -> Answer {
        self.try_send(callback).unwrap()
    }

    /// Sends what must be accepted; its id.
    #[track_caller]
    pub(crate) fn accept(&self, callback: &Callback) -> String {
        let answer = self.send(callback);
        assert_eq!((answer.status, answer.outcome().as_str()), (200, "accepted"), "{answer:?}");
        answer.id()
    }

    /// Asks the API that the commands talk to.
    #[track_caller]
    pub(crate) fn call(&self, name: &str, question: &Value) -> Value {
        match self.try_call(name, question) {
            Ok(answer) => answer,
            Err(answer) => panic!("{name}: {answer:?}"),
        }
    }

    /// The same of a storage that may not be able to tell.
    pub(crate) fn try_call(&self, name: &str, question: &Value) -> Result<Value, Answer> {
        let (path, json) = (format!("/api/{name}"), [("content-type", "application/json")]);
        let answer = post(self.admin, &path, &json, question.to_string().as_bytes()).unwrap();
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer) }
    }

    /// The status of the readiness probe; 0 when nobody answers.
    pub(crate) fn readiness(&self) -> u16 {
        get(self.admin, "/readyz").map_or(0, |answer| answer.status)
    }

    /// The sum of the series with this name that have all of these labels, each written `name="value"`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = get(self.admin, "/metrics").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = String::from_utf8(answer.body).unwrap();
        let is_meant = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| {
                rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label))
            })
        };
        let values: Vec<f64> =
            text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        assert!(!values.is_empty(), "there is no metric {name} {labels:?}");
        values.iter().sum()
    }

    /// The same of a metric that counts.
    #[track_caller]
    pub(crate) fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.metric(name, labels) as u64
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("the gateway said, last:\n{}", log[log.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// The end of a command, with all it printed.
#[track_caller]
fn finish(mut child: Child) -> Told {
    fn read(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = from.map(|mut from| from.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        })
    }
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let deadline = std::time::Instant::now() + COMMAND;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if std::time::Instant::now() > deadline => break None,
            None => super::pause(super::LOOK),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let told = Told {
        code: status.and_then(|status| status.code()),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(status.is_some(), "still running after {COMMAND:?}: {told:?}");
    told
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

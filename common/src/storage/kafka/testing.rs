//! Real servers for tests: Apache Kafka brokers (KRaft, loopback, in folders of their own), and Redis.
//!
//! Tests that only need a broker share one per test process, each with its own topic prefix: [`options`]. Those
//! that stop or kill theirs start their own: [`Broker`] or, with replicas, [`Cluster`]. Servers end with the
//! process, however that ends: a guardian waits for the end of a pipe that only this process holds.
//! `CHASKI_TEST_KAFKA=host:port` takes a shared broker that runs already, `KAFKA_HOME` another installation.
//! Without any of them the test fails and says what to do. All of this blocks: call it from a blocking thread.

#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a test rig: a panic is a red test")]

mod broker;
mod redis;
mod secured;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

pub use self::broker::{Broker, Cluster, libraries};
pub use self::redis::{RedisCluster, RedisServer, RedisUnderSentinel};
pub use self::secured::SecuredBroker;
use super::Options;
use super::client::ANSWER_WITHIN;

const START_WITHIN: Duration = Duration::from_secs(120);
/// Ends the server when its standard input ends, and its folder unless it is told to keep that.
const GUARDIAN: &str = r#"folder=$1; shift
"$@" >"$folder/server.log" 2>&1 </dev/null & server=$!
echo $server >"$folder/server.pid"
read -r last
kill -9 $server 2>/dev/null
wait $server 2>/dev/null
[ "$last" = keep ] || rm -rf "$folder""#;

/// A server under its guardian, in a folder of its own, started and killed as often as a test likes. Ends, with
/// its folder, when it is dropped.
struct Server {
    folder: PathBuf,
    guardian: Option<Child>,
}

impl Server {
    fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("chaski-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for a server");
        Self { folder, guardian: None }
    }

    fn run<'a>(&mut self, program: &str, arguments: impl IntoIterator<Item = &'a str>) {
        let mut command = Command::new("sh");
        command.args(["-c", GUARDIAN, "guardian"]).arg(&self.folder).arg(program).args(arguments);
        self.guardian = Some(command.stdin(Stdio::piped()).spawn().expect("sh is there"));
    }

    /// Waits until somebody listens at its port.
    fn listens_at(&self, port: u16) {
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(
                began.elapsed() < START_WITHIN,
                "redis-server is missing (apt-get install redis-server) or does not start:\n{}",
                self.last_words()
            );
            std::thread::yield_now();
        }
    }

    /// Kills the server and waits until it is gone; its folder stays.
    fn kill(&mut self) {
        self.end("keep\n");
    }

    fn end(&mut self, last: &str) {
        if let Some(mut guardian) = self.guardian.take() {
            if let Some(mut stdin) = guardian.stdin.take() {
                let _ = stdin.write_all(last.as_bytes());
            }
            let _ = guardian.wait();
        }
    }

    /// The end of what it printed, for the message of a test that waited in vain.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join("server.pid")).expect("the server runs");
        let sent = Command::new("kill").args([format!("-{signal}"), pid.trim().to_owned()]).status();
        assert!(sent.expect("kill is there").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end("");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Options for a storage of its own on the shared broker.
#[must_use]
pub fn options() -> Options {
    options_at(vec![address().to_owned()], 1)
}

/// Options for a storage of its own at these brokers, with one partition.
fn options_at(brokers: Vec<String>, replication: i32) -> Options {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut options = Options::new(brokers);
    options.topic_prefix = format!("test-{}-{number}", std::process::id());
    options.replication = replication;
    options.partitions = 1;
    options
}

/// How many members a consumer group has.
#[must_use]
pub fn members(options: &Options, group: &str) -> usize {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &options.brokers[0]).create().expect("a client");
    let groups = client.fetch_group_list(Some(group), ANSWER_WITHIN).expect("the broker answers");
    groups.groups().iter().map(|group| group.members().len()).sum()
}

/// Forgets the progress of a group without members, as brokers do after their `offsets.retention.minutes`.
pub async fn forget_group(options: &Options, group: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &options.brokers[0]).create().expect("a client");
    let deleted = admin.delete_groups(&[group], &AdminOptions::new()).await.expect("the broker answers");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

/// Deletes the events of a partition up to an offset, as a retention of the brokers would.
pub async fn delete_events(options: &Options, partition: i32, before: i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &options.brokers[0]).create().expect("a client");
    let mut list = TopicPartitionList::new();
    let topic = format!("{}.events", options.topic_prefix);
    list.add_partition_offset(&topic, partition, Offset::Offset(before)).expect("an offset");
    let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("the broker answers");
    assert!(deleted.elements().iter().all(|place| place.error().is_ok()));
}

/// The shared broker's address; starts it if nobody has.
#[must_use]
pub fn address() -> &'static str {
    static SHARED: OnceLock<(String, Option<Broker>)> = OnceLock::new();
    let shared = SHARED.get_or_init(|| match std::env::var("CHASKI_TEST_KAFKA") {
        Ok(address) => (address, None),
        Err(_) => {
            let broker = Broker::start();
            (broker.address(), Some(broker))
        }
    });
    &shared.0
}

/// A port of the loopback that nobody listens on, outside of the range that outgoing connections are given: a server
/// that is killed finds it free again.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const SPAN: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two runs at once begin at different places.
    let offset = (std::process::id() % 600) as u16 * 30;
    loop {
        let port = FIRST + offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % SPAN;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("a path of our own making")
}

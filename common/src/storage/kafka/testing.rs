//! Real servers for tests: an Apache Kafka broker (KRaft, one node, loopback, in a folder of its own), and Redis.
//!
//! One broker per test process, shared by its tests, each with its own topic prefix. Servers end with the process,
//! however that ends: a guardian waits for the end of a pipe that only this process holds.
//! `CHASKI_TEST_KAFKA=host:port` takes a broker that runs already, `KAFKA_HOME` another installation. Without
//! any of them the test fails and says what to do.

#![allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a test rig: a panic is a red test")]

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::client::ANSWER_WITHIN;
use super::{Options, Redis};
use crate::secret::Secret;

/// The version is in one place: what the build file fetches is what is looked for.
const POM: &str = include_str!("../../../../tests/kafka/pom.xml");
/// Sixteen bytes in base64, as the broker wants them.
const CLUSTER_ID: &str = "Y2hhc2tpLXRlc3RzLWthZg";
const START_WITHIN: Duration = Duration::from_secs(90);
/// Ends the server and its folder when its standard input ends.
const GUARDIAN: &str = r#"folder=$1; shift
"$@" >"$folder/server.log" 2>&1 </dev/null & server=$!
echo $server >"$folder/server.pid"
read -r _
kill -9 $server 2>/dev/null
wait $server 2>/dev/null
rm -rf "$folder""#;

/// A Kafka broker; ends when it is dropped.
pub struct Broker {
    address: String,
    folder: PathBuf,
    guardian: Option<Child>,
}

impl Broker {
    /// Starts one of its own, for tests that do something to it.
    #[must_use]
    pub fn start() -> Self {
        start()
    }

    /// Options for a storage on it.
    #[must_use]
    pub fn options(&self) -> Options {
        options_on(&self.address)
    }

    /// Sends it a signal: after `STOP` nobody can reach it, until `CONT`.
    pub fn signal(&self, signal: &str) {
        send_signal(&self.folder, signal);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
    }
}

/// A Redis server of its own; ends when it is dropped.
pub struct RedisServer {
    port: u16,
    folder: PathBuf,
    guardian: Option<Child>,
}

impl RedisServer {
    /// Starts a server and waits until it listens.
    #[must_use]
    pub fn start() -> Self {
        let mut server = Self { port: free_port(), folder: PathBuf::new(), guardian: None };
        server.folder =
            std::env::temp_dir().join(format!("chaski-redis-{}-{}", std::process::id(), server.port));
        server.run();
        server
    }

    /// Starts it, or starts it again, empty, at the same address.
    pub fn run(&mut self) {
        std::fs::create_dir_all(&self.folder).expect("a folder for redis");
        let mut redis = guarded(&self.folder, "redis-server");
        redis.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
        self.guardian = Some(redis.arg(&self.folder).spawn().expect("sh is there"));
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                began.elapsed() < START_WITHIN,
                "redis-server is missing or does not start: apt-get install redis-server"
            );
            std::thread::yield_now();
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
    }

    /// Sends it a signal, `STOP` or `CONT`.
    pub fn signal(&self, signal: &str) {
        send_signal(&self.folder, signal);
    }

    /// How to reach it.
    #[must_use]
    pub fn options(&self) -> Redis {
        let url = Secret::new(format!("redis://127.0.0.1:{}/0", self.port));
        Redis { url, window: Duration::from_secs(3600) }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn send_signal(folder: &Path, signal: &str) {
    let pid = std::fs::read_to_string(folder.join("server.pid")).expect("the server runs");
    let sent = Command::new("kill").args([format!("-{signal}"), pid.trim().to_owned()]).status();
    assert!(sent.expect("kill is there").success());
}

/// A command that runs a program under its guardian.
fn guarded(folder: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", GUARDIAN, "guardian"]).arg(folder).arg(program).stdin(Stdio::piped());
    command
}

/// Options for a storage of its own on the shared broker.
#[must_use]
pub fn options() -> Options {
    options_on(address())
}

fn options_on(address: &str) -> Options {
    let mut options = Options::new(vec![address.to_owned()]);
    let number = number();
    options.topic_prefix = format!("test-{}-{number}", std::process::id());
    options.replication = 1;
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
    static BROKER: OnceLock<Broker> = OnceLock::new();
    let shared = || match std::env::var("CHASKI_TEST_KAFKA") {
        Ok(address) => Broker { address, folder: PathBuf::new(), guardian: None },
        Err(_) => start(),
    };
    &BROKER.get_or_init(shared).address
}

/// One that nobody in this process had.
fn number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn start() -> Broker {
    let libraries = libraries();
    let folder = std::env::temp_dir().join(format!("chaski-kafka-{}-{}", std::process::id(), number()));
    std::fs::create_dir_all(&folder).expect("a folder for the broker");
    let (client, controller) = (free_port(), free_port());
    let properties = folder.join("server.properties");
    write_properties(&properties, &folder, client, controller);
    let class_path = format!("{}/*", libraries.display());
    let formatted = Command::new("java")
        .args(["-Xmx128m", "-cp", &class_path, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
        .arg(&properties)
        .output()
        .expect("java is missing: apt-get install openjdk-17-jre-headless");
    assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    let guardian = guarded(&folder, "java")
        .args(["-Xmx512m", "-cp", &class_path, "kafka.Kafka"])
        .arg(&properties)
        .spawn()
        .expect("sh is there");
    let address = format!("127.0.0.1:{client}");
    let broker = Broker { address, folder, guardian: Some(guardian) };
    let probe: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &broker.address).create().expect("a client");
    let began = Instant::now();
    while probe.fetch_metadata(None, Duration::from_secs(1)).is_err() {
        assert!(
            began.elapsed() < START_WITHIN,
            "the broker does not answer, see {}/server.log",
            broker.folder.display()
        );
    }
    broker
}

fn libraries() -> PathBuf {
    let version = POM
        .split("<version>")
        .nth(1)
        .and_then(|rest| rest.split("</version>").next())
        .expect("the build file names a version");
    let folder = match (std::env::var_os("KAFKA_HOME"), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(home), _) => Path::new(&home).join("libs"),
        (None, Some(cache)) => Path::new(&cache).join(format!("chaski/kafka-{version}/libs")),
        (None, None) => {
            let home = std::env::var_os("HOME").unwrap_or_default();
            Path::new(&home).join(format!(".cache/chaski/kafka-{version}/libs"))
        }
    };
    assert!(
        folder.is_dir(),
        "no Kafka broker in {}: run `make tools-kafka`, or set KAFKA_HOME or CHASKI_TEST_KAFKA",
        folder.display()
    );
    folder
}

fn write_properties(file: &Path, folder: &Path, client: u16, controller: u16) {
    let mut file = std::fs::File::create(file).expect("a configuration file");
    write!(
        file,
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
         log.dirs={}/log\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n",
        folder.display()
    )
    .expect("written");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

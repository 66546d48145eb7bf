//! Apache Kafka brokers: one on its own, or several with replicas.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{START_WITHIN, Server, free_port, options_at, text};
use crate::storage::kafka::Options;

/// The version is in one place: what the build file fetches is what is looked for.
const POM: &str = include_str!("../../../../../tests/kafka/pom.xml");
/// Sixteen bytes in base64, as the broker wants them.
const CLUSTER_ID: &str = "Y2hhc2tpLXRlc3RzLWthZg";

/// The name of a listener that asks who is there.
pub(super) const SECURED: &str = "SECURED";

/// What a broker has beyond what each needs.
#[derive(Default)]
pub(super) struct Extra {
    /// Behind the other listeners, each with a comma in front.
    pub(super) listeners: String,
    /// Lines of its configuration.
    pub(super) properties: String,
    /// Arguments for preparing its folder.
    pub(super) format: Vec<String>,
}

/// A broker of its own: on its own, or one of a [`Cluster`]. Ends, with all it holds, when it is dropped.
pub struct Broker {
    client: u16,
    controller: u16,
    memory: &'static str,
    server: Server,
}

impl Broker {
    /// Starts a broker and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(|_| Extra::default())
    }

    /// Starts a broker that tells its clients to come to this port of the loopback, and returns with it the port where
    /// it expects those who do: what lies between is the test's to make.
    #[must_use]
    pub fn start_behind(network: u16) -> (Self, u16) {
        let inside = free_port();
        let broker = Self::start_with(|_| Extra {
            listeners: format!(",OUTSIDE://127.0.0.1:{inside}"),
            // Its own name for itself stays out of it: there is nobody else it talks to.
            properties: format!(
                "advertised.listeners=PLAINTEXT://127.0.0.1:1,OUTSIDE://127.0.0.1:{network}\n\
                 listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,OUTSIDE:PLAINTEXT\n"
            ),
            format: Vec::new(),
        });
        (broker, inside)
    }

    /// Starts a broker with more than it needs; what that is may depend on its folder.
    pub(super) fn start_with(extra: impl FnOnce(&Path) -> Extra) -> Self {
        let mut broker = Self::new("-Xmx512m");
        let extra = extra(&broker.server.folder);
        broker.format(1, &[broker.controller], &extra);
        broker.run();
        broker
    }

    fn new(memory: &'static str) -> Self {
        Self { client: free_port(), controller: free_port(), memory, server: Server::new("kafka") }
    }

    /// Where it listens, as `host:port`; the same however often it is started.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Options for a storage of its own on this broker.
    #[must_use]
    pub fn options(&self) -> Options {
        options_at(vec![self.address()], 1)
    }

    /// Starts it again, with what it holds, at the same address, and waits until it answers.
    pub fn run(&mut self) {
        self.launch();
        self.wait_for(1);
    }

    /// Kills it with SIGKILL and waits until it is gone; what it holds stays.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Sends it a signal: `STOP` and it holds its connections without a word, `CONT` and it goes on.
    pub fn signal(&self, signal: &str) {
        self.server.signal(signal);
    }

    fn launch(&mut self) {
        let properties = self.properties();
        let class_path = class_path();
        self.server.run("java", [self.memory, "-cp", &class_path, "kafka.Kafka", text(&properties)]);
    }

    /// Waits until it answers and knows so many brokers.
    fn wait_for(&self, nodes: usize) {
        let probe: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.address()).create().expect("a client");
        let began = Instant::now();
        while probe
            .fetch_metadata(None, Duration::from_secs(1))
            .map_or(true, |metadata| metadata.brokers().len() < nodes)
        {
            assert!(
                began.elapsed() < START_WITHIN,
                "the broker does not answer; it said last:\n{}",
                self.server.last_words()
            );
            let _ = probe.poll(Duration::from_millis(20));
        }
    }

    fn properties(&self) -> PathBuf {
        self.server.folder.join("server.properties")
    }

    /// Prepares its folder; `voters` are the ports of all controllers, in the order of the nodes' numbers.
    fn format(&self, node: usize, voters: &[u16], extra: &Extra) {
        let quorum: Vec<String> =
            (1..).zip(voters).map(|(node, port)| format!("{node}@127.0.0.1:{port}")).collect();
        let copies = voters.len();
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id={node}\n\
             controller.quorum.voters={quorum}\n\
             listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{SECURED}:SASL_SSL\n\
             log.dirs={folder}/log\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor={copies}\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor={copies}\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             {properties}",
            listeners = extra.listeners,
            properties = extra.properties,
            quorum = quorum.join(","),
            client = self.client,
            controller = self.controller,
            folder = self.server.folder.display(),
        );
        std::fs::write(self.properties(), properties).expect("written");
        let formatted = Command::new("java")
            .args(["-Xmx128m", "-cp", &class_path(), "kafka.tools.StorageTool", "format"])
            .args(["-t", CLUSTER_ID, "-c"])
            .arg(self.properties())
            .args(&extra.format)
            .output()
            .expect("java is missing: apt-get install openjdk-17-jre-headless");
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    }
}

/// Brokers that replicate: what is written at [`Cluster::options`] has a copy on each, up to three, and two must
/// have it before it counts. Each may be killed, stopped and started again.
pub struct Cluster {
    /// The nodes, numbered from 1.
    pub brokers: Vec<Broker>,
}

impl Cluster {
    /// Starts so many brokers and waits until they know each other. Three take about a gigabyte.
    #[must_use]
    pub fn start(nodes: usize) -> Self {
        let mut brokers: Vec<Broker> = (0..nodes).map(|_| Broker::new("-Xmx256m")).collect();
        let voters: Vec<u16> = brokers.iter().map(|broker| broker.controller).collect();
        for (node, broker) in (1..).zip(&brokers) {
            broker.format(node, &voters, &Extra::default());
        }
        for broker in &mut brokers {
            broker.launch();
        }
        for broker in &brokers {
            broker.wait_for(nodes);
        }
        Self { brokers }
    }

    /// Options for a storage of its own on this cluster: up to three copies, and of three two in sync.
    #[must_use]
    pub fn options(&self) -> Options {
        let copies = i32::try_from(self.brokers.len().min(3)).unwrap_or(3);
        options_at(self.brokers.iter().map(Broker::address).collect(), copies)
    }
}

fn class_path() -> String {
    format!("{}/*", libraries().display())
}

/// Where the jars of the broker are.
#[must_use]
pub fn libraries() -> PathBuf {
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
        "no Kafka broker in {}: run `make tools-test`, or set KAFKA_HOME or CHASKI_TEST_KAFKA",
        folder.display()
    );
    folder
}

//! The three topics: what they must be, what they are, and making them. Nothing is ever auto-created.
//!
//! A topic that exists is never changed, except that the events topic may gain partitions: what else is wrong
//! is told, with what would be right, because another hand set it and must know why it breaks a promise.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::Options;
use super::client::{ANSWER_WITHIN, Connect, RECORD_BYTES_MAX, failed, log};
use crate::storage::{Position, StorageError};

/// How long brokers may take to show what was made, and the pause between two looks.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
const SHOWN_AGAIN: Duration = Duration::from_millis(200);

/// The names of the topics.
#[derive(Clone, Debug)]
pub(super) struct Topics {
    pub(super) events: Arc<str>,
    pub(super) parked: Arc<str>,
    pub(super) dead: Arc<str>,
}

impl Topics {
    pub(super) fn new(prefix: &str) -> Self {
        let named = |name: &str| Arc::from(format!("{prefix}.{name}"));
        Self { events: named("events"), parked: named("parked"), dead: named("dead") }
    }
}

/// A step that makes the topics what they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The topic is missing.
    Create {
        /// Its name.
        topic: String,
        /// Its partitions.
        partitions: i32,
        /// Its copies.
        replication: i32,
        /// Its settings.
        settings: Vec<(&'static str, String)>,
    },
    /// The topic has fewer partitions than configured.
    Grow {
        /// Its name.
        topic: String,
        /// Partitions it has.
        from: i32,
        /// Partitions it is to have.
        to: i32,
    },
    /// The topic breaks a promise and is not ours to change.
    Refuse {
        /// Its name.
        topic: String,
        /// What is wrong and what would be right.
        why: String,
    },
}

impl Step {
    /// The name of the topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        match self {
            Self::Create { topic, .. } | Self::Grow { topic, .. } | Self::Refuse { topic, .. } => topic,
        }
    }
}

impl Options {
    /// The names of the topics.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let topics = Topics::new(&self.topic_prefix);
        [topics.events, topics.parked, topics.dead].iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { topic, .. } => write!(f, "{topic} is missing"),
            Self::Grow { topic, from, to } => write!(f, "{topic} has {from} partitions instead of {to}"),
            Self::Refuse { topic, why } => write!(f, "{topic}: {why}"),
        }
    }
}

struct Wanted {
    topic: Arc<str>,
    partitions: i32,
    /// Whether more partitions are a matter of taste.
    can_grow: bool,
    copies: i32,
    settings: Vec<(&'static str, String)>,
}

/// A topic as it is.
struct Found {
    partitions: i32,
    /// Of the partition that has the fewest.
    copies: i32,
}

impl Found {
    fn of(topic: &MetadataTopic) -> Self {
        let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
        Self { partitions: count(topic.partitions().len()), copies: count(copies.unwrap_or_default()) }
    }
}

fn wanted(options: &Options) -> Vec<Wanted> {
    let topics = Topics::new(&options.topic_prefix);
    let common = [
        ("min.insync.replicas", options.replication.clamp(1, 2).to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", RECORD_BYTES_MAX.to_string()),
        // The edge's own time of receipt, which replays go by; a clock that is ahead must not refuse events.
        ("message.timestamp.type", "CreateTime".to_owned()),
        ("message.timestamp.after.max.ms", i64::MAX.to_string()),
        // What an outage kept in the spool is that old when it comes.
        ("message.timestamp.before.max.ms", i64::MAX.to_string()),
    ];
    let with = |extra: &[(&'static str, &str)]| {
        let extra = extra.iter().map(|(name, value)| (*name, (*value).to_owned()));
        common.iter().cloned().chain(extra).collect::<Vec<_>>()
    };
    // The brokers would delete by age or size, settled or not; chaski deletes what is settled.
    let events = with(&[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")]);
    // One partition each: their records have one order, and a letter's number is its place in it.
    let kept = || with(&[("cleanup.policy", "compact"), ("segment.bytes", "67108864")]);
    let copies = options.replication;
    vec![
        Wanted {
            topic: topics.events,
            partitions: options.partitions,
            can_grow: true,
            copies,
            settings: events,
        },
        Wanted { topic: topics.parked, partitions: 1, can_grow: false, copies, settings: kept() },
        Wanted { topic: topics.dead, partitions: 1, can_grow: false, copies, settings: kept() },
    ]
}

/// The cluster as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// How many brokers it has.
    pub brokers: usize,
    /// What must be done before the storage can open; nothing if the topics are as they must be.
    pub steps: Vec<Step>,
}

/// What must be done before the storage can open; nothing if the topics are as they must be.
///
/// # Errors
/// When the brokers do not answer or refuse to tell.
pub async fn plan(options: &Options) -> Result<Vec<Step>, StorageError> {
    Ok(inspect(options, ANSWER_WITHIN).await?.steps)
}

/// Looks at brokers and topics; each question may take so long.
///
/// # Errors
/// When the brokers do not answer or refuse to tell.
pub async fn inspect(options: &Options, within: Duration) -> Result<Cluster, StorageError> {
    let asked = || metadata(options, "reading the list of topics", within);
    let found = tokio::task::block_in_place(asked)?;
    let admin = admin(options)?;
    let mut steps = Vec::new();
    for wanted in wanted(options) {
        let topic = found.topics().iter().find(|topic| topic.name() == &*wanted.topic);
        match topic.map(Found::of) {
            None => steps.push(Step::Create {
                topic: wanted.topic.to_string(),
                partitions: wanted.partitions,
                replication: wanted.copies,
                settings: wanted.settings,
            }),
            Some(found) => compare(&admin, &wanted, found, within, &mut steps).await?,
        }
    }
    Ok(Cluster { brokers: found.brokers().len(), steps })
}

/// Does what [`plan`] says and can be done, and waits until the brokers show it: they tell each other a moment later.
/// Returns what is left: the refusals. What somebody else has done meanwhile is as good.
///
/// # Errors
/// When the brokers do not answer, do not do it, or do not show it within 30 s.
pub async fn apply(options: &Options, steps: Vec<Step>) -> Result<Vec<Step>, StorageError> {
    let doing = "making the topics";
    let admin = admin(options)?;
    let how = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN));
    for step in steps {
        let done = match &step {
            Step::Create { topic, partitions, replication, settings } => {
                let mut new = NewTopic::new(topic, *partitions, TopicReplication::Fixed(*replication));
                for (name, value) in settings {
                    new = new.set(name, value);
                }
                admin.create_topics([&new], &how).await
            }
            Step::Grow { topic, to, .. } => {
                let count = usize::try_from(*to).unwrap_or(1);
                admin.create_partitions([&NewPartitions::new(topic, count)], &how).await
            }
            Step::Refuse { .. } => continue,
        };
        for outcome in done.map_err(|error| failed(doing, error))? {
            match outcome {
                Ok(_)
                | Err((_, RDKafkaErrorCode::TopicAlreadyExists | RDKafkaErrorCode::InvalidPartitions)) => {}
                Err((_, code)) => return Err(failed(doing, KafkaError::AdminOp(code))),
            }
        }
    }
    let shown = async {
        loop {
            // A broker that does not know a topic yet cannot tell its settings either.
            if let Ok(left) = plan(options).await
                && left.iter().all(|step| matches!(step, Step::Refuse { .. }))
            {
                return left;
            }
            tokio::time::sleep(SHOWN_AGAIN).await;
        }
    };
    tokio::time::timeout(SHOWN_WITHIN, shown)
        .await
        .map_err(|_| StorageError::Late { doing, within: SHOWN_WITHIN })
}

/// Deletes the topics with all that is in them.
///
/// # Errors
/// When the brokers do not answer or do not do it; a topic that is missing is as good as deleted.
pub async fn delete(options: &Options) -> Result<(), StorageError> {
    let doing = "deleting the topics";
    let names = options.topics();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let how = AdminOptions::new().operation_timeout(Some(ANSWER_WITHIN));
    let deleted = admin(options)?.delete_topics(&names, &how).await;
    for outcome in deleted.map_err(|error| failed(doing, error))? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((_, code)) => return Err(failed(doing, KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

/// How many brokers the cluster has.
///
/// # Errors
/// When none of them answers.
pub async fn brokers(options: &Options) -> Result<usize, StorageError> {
    let asked = || metadata(options, "reading the list of brokers", ANSWER_WITHIN);
    let found = tokio::task::block_in_place(asked)?;
    Ok(found.brokers().len())
}

type Admin = AdminClient<DefaultClientContext>;

fn admin(options: &Options) -> Result<Admin, StorageError> {
    Connect::new(options).base().create().map_err(|error| failed("making an admin client", error))
}

/// Remembers what the client last complained of: a wrong password or certificate is known to it, and to who waits
/// only as an answer that does not come.
#[derive(Default)]
struct Listener(Mutex<Option<String>>);

impl Listener {
    fn complaint(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, _error: KafkaError, reason: &str) {
        // The first says why; that nobody is left to ask comes after it.
        self.complaint().get_or_insert_with(|| reason.to_owned());
    }
}

impl ConsumerContext for Listener {}

/// Why nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("{error}; the client last said: {complaint}")]
struct Complaint {
    #[source]
    error: KafkaError,
    complaint: String,
}

/// What the cluster consists of. All topics are asked for: asking for one by name may create it, if the brokers
/// are set up so. Blocks.
fn metadata(options: &Options, doing: &'static str, within: Duration) -> Result<Metadata, StorageError> {
    // Only a consumer says what it has to complain of.
    let group = format!("{}.query", options.topic_prefix);
    let client = Connect::new(options).consumer(&group, false, Listener::default())?;
    client.fetch_metadata(None, within).map_err(|error| {
        // It says so when it is asked for messages, if there is anything to say.
        for _ in 0..10 {
            let _ = client.poll(Duration::from_millis(20));
        }
        match client.context().complaint().take() {
            Some(complaint) => {
                StorageError::Engine { doing, cause: Arc::new(Complaint { error, complaint }) }
            }
            None => failed(doing, error),
        }
    })
}

/// Whether any broker answers.
pub(super) async fn answers(options: &Options, within: Duration) -> bool {
    let options = options.clone();
    let asked =
        tokio::task::spawn_blocking(move || metadata(&options, "looking for brokers", within).is_ok());
    asked.await.unwrap_or(false)
}

async fn compare(
    admin: &Admin,
    wanted: &Wanted,
    found: Found,
    within: Duration,
    steps: &mut Vec<Step>,
) -> Result<(), StorageError> {
    let doing = "reading a topic's settings";
    let topic = wanted.topic.to_string();
    let Found { partitions, copies } = found;
    let refuse = |why: String| Step::Refuse { topic: topic.clone(), why };
    if !wanted.can_grow && partitions != wanted.partitions {
        steps.push(refuse(format!("has {partitions} partitions; it must have {}", wanted.partitions)));
    } else if partitions < wanted.partitions {
        steps.push(Step::Grow { topic: topic.clone(), from: partitions, to: wanted.partitions });
    } else if partitions.unsigned_abs() > Position::PARTITIONS_MAX {
        steps.push(refuse(format!("has {partitions} partitions; {} are the most", Position::PARTITIONS_MAX)));
    }
    if copies < wanted.copies {
        steps.push(refuse(format!(
            "has {copies} copies; it must have {} (kafka-reassign-partitions.sh)",
            wanted.copies
        )));
    }
    let found = admin
        .describe_configs(
            [&ResourceSpecifier::Topic(&topic)],
            &AdminOptions::new().request_timeout(Some(within)),
        )
        .await
        .map_err(|error| failed(doing, error))?;
    let Some(Ok(found)) = found.into_iter().next() else {
        return Err(failed(doing, KafkaError::AdminOpCreation(topic)));
    };
    for (name, right) in &wanted.settings {
        let value = found.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        if !is_right(name, value, right) {
            steps.push(refuse(format!(
                "{name} is {value:?}; it must be {right} (kafka-configs.sh --alter --topic {topic} --add-config {name}={right})"
            )));
        }
    }
    Ok(())
}

/// Whether a setting keeps what is promised; more of what keeps it is as good.
fn is_right(name: &str, value: &str, right: &str) -> bool {
    let numbers = || Some((value.parse::<i64>().ok()?, right.parse::<i64>().ok()?));
    match name {
        "min.insync.replicas" | "max.message.bytes" => numbers().is_some_and(|(value, right)| value >= right),
        // A bound on a clock that is ahead refuses events that are as good as others.
        "message.timestamp.after.max.ms" => numbers().is_some_and(|(value, _)| value >= 86_400_000),
        // Longer than any outage.
        "message.timestamp.before.max.ms" => numbers().is_some_and(|(value, _)| value >= 30 * 86_400_000),
        // A matter of tidiness.
        "segment.bytes" => true,
        _ => value == right,
    }
}

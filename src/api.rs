//! What an operator may ask of a store, in one form for the admin API and for a store that stands still.
//!
//! Each question is a type, its [`Call::Answer`] another; both travel as JSON. A question runs on
//! [`Operations`]: over a running process there is a dispatcher to tell, over a stopped store there is none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chaski_common::clock::Clock;
use chaski_common::event::{Environment, Event, EventId};
use chaski_common::storage::{
    DeadFilter, DeadLetter, EventFilter, Failure, Fate, FateState, Parked, ParkedFilter, Position, Progress,
    Record, Storage, StorageError,
};
use chaski_dispatcher::{Dispatcher, REPLAYS_MAX};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where questions are answered.
#[derive(Clone)]
pub struct Operations {
    /// The store.
    pub storage: Storage,
    /// The deliveries under way; none over a stopped store.
    pub dispatcher: Option<Dispatcher>,
    /// The time of day.
    pub clock: Clock,
    /// Re-reads the configuration; none over a stopped store.
    pub reload: Option<Arc<dyn Reload>>,
    /// The destinations of the configuration in force; over a stopped store of the command's.
    pub destinations: Arc<dyn Fn() -> BTreeSet<Arc<str>> + Send + Sync>,
}

/// Something that can read its configuration again.
#[async_trait]
pub trait Reload: Send + Sync {
    /// Takes the new configuration into force, or leaves the old one there and says why.
    async fn reload(&self) -> Result<Reloaded, String>;
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The question itself is at fault.
    #[error("{0}")]
    Refused(String),
    /// The storage did not do its part.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<chaski_dispatcher::Error> for ApiError {
    fn from(error: chaski_dispatcher::Error) -> Self {
        match error {
            chaski_dispatcher::Error::Storage(error) => Self::Storage(error),
            unknown => Self::Refused(unknown.to_string()),
        }
    }
}

/// A question and its answer.
#[async_trait]
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// Its name in `POST /api/NAME`.
    const NAME: &'static str;
    /// What comes back.
    type Answer: Serialize + DeserializeOwned + Send;

    /// Finds the answer.
    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError>;
}

/// Runs the call `name` with `question` as its JSON; none for a name that is no call.
pub async fn dispatch(
    name: &str,
    question: &[u8],
    on: &Operations,
) -> Option<Result<serde_json::Value, ApiError>> {
    macro_rules! route {
        ($($call:ty),+ $(,)?) => {
            match name {
                $(<$call>::NAME => Some(answer::<$call>(question, on).await),)+
                _ => None,
            }
        };
    }
    route!(
        EventFilter,
        ShowEvent,
        ParkedFilter,
        HurryParked,
        DropParked,
        DeadFilter,
        ShowDead,
        RedriveDead,
        DropDead,
        BeginReplay,
        ListDestinations,
        SetPaused,
        ReloadConfiguration,
    )
}

async fn answer<C: Call>(question: &[u8], on: &Operations) -> Result<serde_json::Value, ApiError> {
    let call: C = serde_json::from_slice(question)
        .map_err(|error| ApiError::Refused(format!("not a question to {}: {error}", C::NAME)))?;
    let answer = call.run(on).await?;
    serde_json::to_value(answer)
        .map_err(|error| ApiError::Refused(format!("the answer cannot be written: {error}")))
}

/// An event without its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventView {
    /// Its id.
    pub id: EventId,
    /// Its source.
    pub source: Arc<str>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// What it is about.
    pub subject: Option<Arc<str>>,
    /// When it happened, says the provider.
    pub time: Option<Timestamp>,
    /// When it was taken.
    pub received_at: Timestamp,
    /// What its source was then; none if it was stored before that was kept.
    pub environment: Option<Environment>,
    /// Length of its body.
    pub body_bytes: usize,
    /// Its place in the log; none outside of it.
    pub position: Option<Position>,
}

impl EventView {
    fn of(event: &Event, position: Option<Position>) -> Self {
        Self {
            id: event.id,
            source: Arc::clone(&event.source),
            kind: Arc::clone(&event.kind),
            subject: event.subject.clone(),
            time: event.time,
            received_at: event.received_at,
            environment: event.environment,
            body_bytes: event.body.len(),
            position,
        }
    }
}

/// The body of an event, readable if it is text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyView {
    /// UTF-8.
    Text(String),
    /// Anything else, in hexadecimal.
    Hex(String),
}

impl BodyView {
    fn of(body: &[u8]) -> Self {
        std::str::from_utf8(body)
            .map_or_else(|_| Self::Hex(hex::encode(body)), |text| Self::Text(text.to_owned()))
    }
}

#[async_trait]
impl Call for EventFilter {
    const NAME: &'static str = "events";
    type Answer = Vec<EventView>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        let found = on.storage.events.find(self).await?;
        Ok(found.iter().map(|Record { position, event }| EventView::of(event, Some(*position))).collect())
    }
}

/// One event, whole, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShowEvent {
    /// Which.
    pub id: EventId,
}

/// The answer to [`ShowEvent`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventDetail {
    /// The event.
    #[serde(flatten)]
    pub event: EventView,
    /// Its content type, as sent.
    pub content_type: Option<Arc<str>>,
    /// SHA-256 of the bytes received, for disputes.
    pub body_sha256: String,
    /// The bytes received.
    pub body: BodyView,
    /// What became of it at each destination.
    pub destinations: Vec<Fate>,
    /// Letters without destination under its id: quarantined content.
    pub quarantined: Vec<DeadView>,
}

#[async_trait]
impl Call for ShowEvent {
    const NAME: &'static str = "events/show";
    type Answer = Option<EventDetail>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        let events = &on.storage.events;
        let stored =
            events.find(EventFilter { id: Some(self.id), limit: 1, ..EventFilter::default() }).await?.pop();
        let letters =
            on.storage.deliveries.dead(DeadFilter { id: Some(self.id), ..DeadFilter::default() }).await?;
        let (event, position) = match (stored, letters.first()) {
            (Some(record), _) => (record.event, Some(record.position)),
            // Pruned, or never in the log: its letters keep it whole.
            (None, Some(letter)) => (letter.event.clone(), None),
            (None, None) => return Ok(None),
        };
        let quarantined =
            letters.iter().filter(|letter| letter.destination.is_none()).map(DeadView::of).collect();
        Ok(Some(EventDetail {
            event: EventView::of(&event, position),
            content_type: event.content_type.clone(),
            body_sha256: hex::encode(sha256(&event.body)),
            body: BodyView::of(&event.body),
            destinations: events.fates(self.id).await?,
            quarantined,
        }))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// A delivery that waits for its next attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParkedView {
    /// Where to.
    pub destination: Arc<str>,
    /// What.
    #[serde(flatten)]
    pub event: EventView,
    /// When the next attempt is due.
    pub due: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// When the first one began.
    pub first_attempt: Option<Timestamp>,
    /// What went wrong.
    pub history: Vec<Failure>,
}

#[async_trait]
impl Call for ParkedFilter {
    const NAME: &'static str = "parked";
    type Answer = Vec<ParkedView>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        let view = |parked: Parked| ParkedView {
            event: EventView::of(&parked.event, Some(parked.position)),
            destination: parked.destination,
            due: parked.due,
            attempts: parked.attempts,
            first_attempt: parked.first_attempt,
            history: parked.history,
        };
        Ok(on.storage.deliveries.parked(self).await?.into_iter().map(view).collect())
    }
}

/// Makes parked deliveries of an event due now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HurryParked {
    /// Of this event.
    pub id: EventId,
    /// At this destination, or at all.
    pub destination: Option<String>,
}

#[async_trait]
impl Call for HurryParked {
    const NAME: &'static str = "parked/now";
    type Answer = usize;

    async fn run(self, on: &Operations) -> Result<usize, ApiError> {
        Ok(on.storage.deliveries.hurry(self.id, self.destination.as_deref(), on.clock.now()).await?)
    }
}

/// Ends parked deliveries of an event: they become dead letters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropParked {
    /// Of this event.
    pub id: EventId,
    /// At this destination, or at all.
    pub destination: Option<String>,
}

#[async_trait]
impl Call for DropParked {
    const NAME: &'static str = "parked/drop";
    type Answer = usize;

    async fn run(self, on: &Operations) -> Result<usize, ApiError> {
        Ok(on.storage.deliveries.drop_parked(self.id, self.destination.as_deref(), on.clock.now()).await?)
    }
}

/// A dead letter without its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadView {
    /// Its number.
    pub number: u64,
    /// The destination; none for a quarantined event.
    pub destination: Option<Arc<str>>,
    /// What was to be delivered.
    #[serde(flatten)]
    pub event: EventView,
    /// Why it ended.
    pub reason: Arc<str>,
    /// What a person needs beside that.
    pub detail: Arc<str>,
    /// When it ended.
    pub at: Timestamp,
    /// Attempts made.
    pub attempts: u32,
    /// What went wrong.
    pub history: Vec<Failure>,
}

impl DeadView {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            number: letter.number,
            destination: letter.destination.clone(),
            event: EventView::of(&letter.event, letter.position),
            reason: Arc::clone(&letter.reason),
            detail: Arc::clone(&letter.detail),
            at: letter.at,
            attempts: letter.attempts,
            history: letter.history.clone(),
        }
    }
}

#[async_trait]
impl Call for DeadFilter {
    const NAME: &'static str = "dead";
    type Answer = Vec<DeadView>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        Ok(on.storage.deliveries.dead(self).await?.iter().map(DeadView::of).collect())
    }
}

/// The dead letters of one event, whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShowDead {
    /// Of this event.
    pub id: EventId,
}

/// A dead letter with its body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadDetail {
    /// The letter.
    #[serde(flatten)]
    pub letter: DeadView,
    /// The bytes received.
    pub body: BodyView,
}

#[async_trait]
impl Call for ShowDead {
    const NAME: &'static str = "dead/show";
    type Answer = Vec<DeadDetail>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        let letters =
            on.storage.deliveries.dead(DeadFilter { id: Some(self.id), ..DeadFilter::default() }).await?;
        Ok(letters
            .iter()
            .map(|letter| DeadDetail { letter: DeadView::of(letter), body: BodyView::of(&letter.event.body) })
            .collect())
    }
}

/// Sends dead letters on their way again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RedriveDead {
    /// Their numbers.
    pub numbers: Vec<u64>,
}

#[async_trait]
impl Call for RedriveDead {
    const NAME: &'static str = "dead/redrive";
    type Answer = usize;

    async fn run(self, on: &Operations) -> Result<usize, ApiError> {
        Ok(on.storage.deliveries.redrive(&self.numbers, on.clock.now()).await?)
    }
}

/// Deletes dead letters for good.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropDead {
    /// Their numbers.
    pub numbers: Vec<u64>,
}

#[async_trait]
impl Call for DropDead {
    const NAME: &'static str = "dead/drop";
    type Answer = usize;

    async fn run(self, on: &Operations) -> Result<usize, ApiError> {
        let dropped = on.storage.deliveries.drop_dead(&self.numbers).await?;
        tracing::info!(letters = dropped, "dead letters were deleted by an operator");
        Ok(dropped)
    }
}

/// Delivers a span of history again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BeginReplay {
    /// To this destination.
    pub destination: String,
    /// Received at this time or later.
    pub from: Timestamp,
    /// Received before this time.
    pub to: Timestamp,
}

/// A replay that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplayBegun {
    /// Its number.
    pub number: u64,
    /// Events it covers, whether or not the destination takes them.
    pub events: u64,
}

#[async_trait]
impl Call for BeginReplay {
    const NAME: &'static str = "replay";
    type Answer = ReplayBegun;

    async fn run(self, on: &Operations) -> Result<ReplayBegun, ApiError> {
        if self.from >= self.to {
            return Err(ApiError::Refused("--from must be earlier than --to".to_owned()));
        }
        if let Some(dispatcher) = on.dispatcher.as_ref().filter(|found| found.has(&self.destination)) {
            let started = dispatcher.replay(&self.destination, self.from, self.to).await?;
            return Ok(ReplayBegun { number: started.number, events: started.events });
        }
        // Another process delivers there, or none does yet.
        on.known(&self.destination).await?;
        let replays = on.storage.events.replays().await?;
        let under_way = replays.iter().filter(|replay| *replay.cursor.destination == *self.destination);
        if under_way.count() >= REPLAYS_MAX {
            let destination = self.destination;
            return Err(chaski_dispatcher::Error::TooManyReplays { destination, max: REPLAYS_MAX }.into());
        }
        let (cursor, events) = on.storage.events.begin_replay(&self.destination, self.from, self.to).await?;
        Ok(ReplayBegun { number: cursor.replay, events })
    }
}

/// How each destination stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListDestinations {}

/// How one destination stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DestinationView {
    /// How far it is, and what it has parked and lost.
    #[serde(flatten)]
    pub progress: Progress,
    /// Whether the configuration has it; if not, nothing is attempted there, nor is what is parked.
    #[serde(default = "unless_said_otherwise")]
    pub configured: bool,
    /// Replays under way.
    pub replays: u64,
    /// What only a running process knows.
    pub running: Option<RunningView>,
}

/// What keeps a destination from being delivered to; the first of these that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// The configuration does not have it.
    NotConfigured,
    /// Somebody has paused it.
    Paused,
    /// The process that was asked does not deliver to it, or none runs.
    NotRunning,
    /// Its receiver wants no more.
    Disabled,
    /// Its breaker is not closed, but this.
    Breaker(&'a str),
    /// Nothing.
    Up,
}

impl DestinationView {
    /// What keeps it from being delivered to.
    #[must_use]
    pub fn standing(&self) -> Standing<'_> {
        match &self.running {
            _ if !self.configured => Standing::NotConfigured,
            _ if self.progress.paused => Standing::Paused,
            None => Standing::NotRunning,
            Some(running) if running.disabled => Standing::Disabled,
            Some(running) if running.breaker != "closed" => Standing::Breaker(&running.breaker),
            Some(_) => Standing::Up,
        }
    }
}

/// A process that does not say so is an earlier version.
const fn unless_said_otherwise() -> bool {
    true
}

/// What only a running process knows about a destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunningView {
    /// Where it is posted to.
    pub url: String,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// Whether the last attempt was answered 410: the receiver wants no more.
    pub disabled: bool,
    /// Attempts under way.
    pub in_flight: u64,
    /// Failed attempts since the last success.
    pub consecutive_failures: u64,
    /// When it last took a delivery.
    pub last_success: Option<Timestamp>,
    /// How the last failed attempt ended.
    pub last_failure: Option<String>,
}

#[async_trait]
impl Call for ListDestinations {
    const NAME: &'static str = "destinations";
    type Answer = Vec<DestinationView>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        let replays = on.storage.events.replays().await?;
        let mut running = on.running();
        let progress = on.storage.events.progress().await?;
        let configured = (on.destinations)();
        let views = progress.into_iter().map(|progress| {
            let of_this =
                |replay: &&chaski_common::storage::Replay| replay.cursor.destination == progress.destination;
            let replays = replays.iter().filter(of_this).count() as u64;
            let running = running.remove(&progress.destination);
            let configured = configured.contains(&progress.destination);
            DestinationView { progress, configured, replays, running }
        });
        Ok(views.collect())
    }
}

/// Pauses or resumes a destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetPaused {
    /// Which.
    pub destination: String,
    /// Whether it is to rest.
    pub paused: bool,
}

#[async_trait]
impl Call for SetPaused {
    const NAME: &'static str = "destinations/pause";
    type Answer = ();

    async fn run(self, on: &Operations) -> Result<(), ApiError> {
        on.known(&self.destination).await?;
        // Whoever delivers there hears it from the storage.
        Ok(on.storage.events.set_paused(&self.destination, self.paused).await?)
    }
}

/// Reads the configuration again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadConfiguration {}

/// What a reload took into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Sources now served.
    pub sources: usize,
    /// Destinations now delivered to.
    pub destinations: usize,
    /// Settings that differ and need a restart.
    pub needs_restart: Vec<String>,
    /// What is allowed in the file and yet worth knowing.
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[async_trait]
impl Call for ReloadConfiguration {
    const NAME: &'static str = "reload";
    /// Or why the old configuration stays in force.
    type Answer = Result<Reloaded, String>;

    async fn run(self, on: &Operations) -> Result<Self::Answer, ApiError> {
        match &on.reload {
            Some(reload) => Ok(reload.reload().await),
            None => Err(ApiError::Refused("nothing is running that could reload".to_owned())),
        }
    }
}

impl Operations {
    /// Refuses a destination the store has never had, or the configuration has no more.
    async fn known(&self, destination: &str) -> Result<(), ApiError> {
        if !(self.destinations)().contains(destination) {
            return Err(ApiError::Refused(format!(
                "the configuration has no destination named {destination}"
            )));
        }
        let progress = self.storage.events.progress().await?;
        if progress.iter().any(|progress| &*progress.destination == destination) {
            return Ok(());
        }
        Err(ApiError::Refused(format!(
            "the store does not have {destination} yet: start chaski once with it in the file"
        )))
    }

    fn running(&self) -> std::collections::BTreeMap<Arc<str>, RunningView> {
        let statuses = self.dispatcher.as_ref().map(Dispatcher::status).unwrap_or_default();
        let view = |status: chaski_dispatcher::status::DestinationStatus| {
            let running = RunningView {
                url: status.url,
                breaker: serde_json::to_value(status.breaker)
                    .ok()
                    .and_then(|name| Some(name.as_str()?.to_owned()))
                    .unwrap_or_default(),
                disabled: status.disabled,
                in_flight: status.in_flight,
                consecutive_failures: status.consecutive_failures,
                last_success: status.last_success,
                last_failure: status
                    .last_failure
                    .map(|failure| format!("{} {} ({})", failure.at, failure.result, failure.detail)),
            };
            (status.name, running)
        };
        statuses.into_iter().map(view).collect()
    }
}

/// A fate in words, for a table.
#[must_use]
pub fn tell(state: &FateState) -> String {
    let attempts =
        |attempts: u32| if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    match state {
        FateState::Delivered { at, attempts: made } => format!("delivered {at} ({})", attempts(*made)),
        FateState::Parked { due, attempts: made, reason } => {
            format!("parked, due {due} ({}, {reason})", attempts(*made))
        }
        FateState::Dead { at, attempts: made, reason } => {
            format!("dead {at} ({}, {reason})", attempts(*made))
        }
        FateState::Waiting => "waiting".to_owned(),
        FateState::Skipped => "not for this destination, or its dead letter was dropped".to_owned(),
        FateState::Settled => {
            "delivered earlier, or not for this destination, or its dead letter was dropped".to_owned()
        }
    }
}

/// How long an operator's question may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

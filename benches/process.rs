//! The processes of a run. Each is ended when its owner is done with it, however that comes about.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::load::Seen;
use crate::machine::{self, Resident};
use crate::null::Manner;
use crate::tally::Tally;
use crate::wire::Connection;

/// Between two looks at something that is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(10);
/// How long an end in order may take.
const END: Duration = Duration::from_secs(30);

/// A child that is killed by its own pid when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("starting {}", program.display()))?))
    }

    /// CPU time it has used.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        machine::cpu_of(self.0.id())
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Resident> {
        machine::memory_of(&self.0.id().to_string())
    }

    pub(crate) fn threads(&self) -> anyhow::Result<usize> {
        machine::threads_of(&self.0.id().to_string())
    }

    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// When it has ended. Dropping this changes nothing.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            match self.0.try_wait()? {
                Some(status) => return Ok(status),
                None => sleep(LOOK).await,
            }
        }
    }

    /// It does nothing from now on; no time passes for it but the clock's.
    pub(crate) fn pause(&mut self) -> anyhow::Result<()> {
        self.tell(Signal::STOP)
    }

    /// It does something again.
    pub(crate) fn resume(&mut self) -> anyhow::Result<()> {
        self.tell(Signal::CONT)
    }

    /// Fails if it has ended: its pid may be another's then.
    fn tell(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(status) = self.0.try_wait()? {
            bail!("the process ended with {status}");
        }
        kill_process(Pid::from_child(&self.0), signal).context("the process could not be told anything")
    }

    /// SIGTERM, and an end in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.tell(Signal::TERM)?;
        let ended = tokio::time::timeout(END, self.ended()).await;
        let status = ended.with_context(|| format!("the process did not end within {END:?}"))??;
        ensure!(status.success(), "the process ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn part(name: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).stdout(Stdio::piped());
    Ok(command)
}

/// A null server that runs.
pub(crate) struct Null {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Null {
    pub(crate) fn start(manner: Manner) -> anyhow::Result<Self> {
        let name = manner.to_possible_value().context("every manner has a name")?;
        let mut command = part("null-server")?;
        let mut process = Process::start(command.arg(name.get_name()))?;
        let stdout = process.0.stdout.take().context("the output is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().context("the null server did not say where it listens")?;
        Ok(Self { process, address })
    }

    /// What it has taken.
    pub(crate) async fn tally(&self) -> anyhow::Result<Tally> {
        self.tell("/").await
    }

    /// From now on it answers 500, with so many seconds of `Retry-After`.
    pub(crate) async fn refuse_for(&self, seconds: u32) -> anyhow::Result<Tally> {
        self.tell(&format!("/refuse/{seconds}")).await
    }

    /// From now on it takes everything.
    pub(crate) async fn take(&self) -> anyhow::Result<Tally> {
        self.tell("/take").await
    }

    /// It finishes what it is answering, and then nobody listens for a while.
    pub(crate) async fn be_away_for(&self, duration: Duration) -> anyhow::Result<Tally> {
        self.tell(&format!("/away/{}", duration.as_millis())).await
    }

    async fn tell(&self, path: &str) -> anyhow::Result<Tally> {
        let mut connection = Connection::open(self.address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: null\r\n\r\n");
        let answer = connection.exchange(request.as_bytes()).await?;
        Tally::read(std::str::from_utf8(answer.body)?)
    }

    /// How late each body came that says when it was to be sent; of those since the last question.
    pub(crate) async fn latencies(&self) -> anyhow::Result<Seen> {
        let mut connection = Connection::open(self.address).await?;
        let answer = connection.exchange(b"GET /latencies HTTP/1.1\r\nhost: null\r\n\r\n").await?;
        let (latencies, _) = answer.body.as_chunks::<4>();
        Ok(Seen::new(Duration::ZERO, latencies.iter().map(|us| u32::from_le_bytes(*us)).collect()))
    }

    /// Waits until it has received so many.
    pub(crate) async fn wait_for(&self, count: u64, patience: Duration) -> anyhow::Result<Tally> {
        let deadline = Instant::now() + patience;
        loop {
            let tally = self.tally().await?;
            if tally.count >= count {
                return Ok(tally);
            }
            ensure!(Instant::now() < deadline, "{} of {count} arrived within {patience:?}", tally.count);
            sleep(LOOK).await;
        }
    }
}

/// A bare client that begins at once and rests when everything is posted.
pub(crate) fn bare_client(to: SocketAddr, events: usize, destinations: usize) -> anyhow::Result<Process> {
    let mut command = part("bare-client")?;
    for (name, value) in [("--events", events), ("--destinations", destinations)] {
        command.args([name, &value.to_string()]);
    }
    Process::start(command.args(["--to", &to.to_string()]))
}

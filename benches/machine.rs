//! What Linux tells about processes and the machine, and what one sync of the disk takes.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::load::Seen;

/// Syncs that are timed, and for how long at most on a busy disk.
const SYNCS: usize = 500;
const SYNCS_TIME: Duration = Duration::from_secs(2);
/// What lies between two of them, so that they see more than one moment of the machine.
const BETWEEN_SYNCS: Duration = Duration::from_millis(1);

/// User and system time of a process since its start: of all its threads, to the nanosecond, where `/proc` counts
/// hundredths of a second.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?;
    Ok(clock_gettime(clock)?.into())
}

/// The same of the thread that asks.
pub(crate) fn cpu_of_this_thread() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// The processors that this thread may run on.
pub(crate) fn processors() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|number| set.is_set(*number) == Ok(true)).collect())
}

/// From now on this thread, and what it starts, runs on these only.
pub(crate) fn keep_to(processors: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for number in processors {
        set.set(*number)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// As many open files as the system lets this process and its children have.
pub(crate) fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("raising the open files")
}

/// How often a connection found no room to wait for its server, since the start of the machine: anybody's.
pub(crate) fn listen_overflows() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("two lines: names and values")?;
    let mut fields = names.split(' ').zip(values.split(' '));
    let (_, overflows) = fields.find(|(name, _)| *name == "ListenOverflows").context("no such field")?;
    Ok(overflows.parse()?)
}

/// Microseconds since 1970, as every process here reads them.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Threads of a process.
pub(crate) fn threads_of(process: &str) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/task"))?.count())
}

/// What a process has in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) now_mib: f64,
    pub(crate) peak_mib: f64,
}

/// Resident memory of a process.
pub(crate) fn memory_of(process: &str) -> anyhow::Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mib = |name: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
        let kib: f64 = line.trim_start_matches(':').trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    };
    Ok(Resident { now_mib: mib("VmRSS")?, peak_mib: mib("VmHWM")? })
}

/// Where the machine's time went since its start.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    all: u64,
    stolen: u64,
}

impl Times {
    pub(crate) fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("the first line is the sum of all cores")?;
        let fields = line.split_ascii_whitespace().skip(1).take(8).map(str::parse);
        let fields: Vec<u64> = fields.collect::<Result<_, _>>()?;
        Ok(Self { all: fields.iter().sum(), stolen: fields.get(7).copied().unwrap_or(0) })
    }

    /// Of all time since then, how much the host took for others.
    pub(crate) fn stolen_percent_since(self, then: Self) -> f64 {
        100.0 * (self.stolen - then.stolen) as f64 / (self.all - then.all).max(1) as f64
    }
}

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Appending 4 KiB and `fdatasync`, in the folder of the stores; the median.
    pub(crate) fsync_us: f64,
}

impl Machine {
    pub(crate) async fn look(folder: &Path) -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            fsync_us: sync_times(folder).await?.quantile_ms(0.5) * 1e3,
        })
    }
}

/// What one append of 4 KiB with `fdatasync` takes in this folder, many times.
pub(crate) async fn sync_times(folder: &Path) -> anyhow::Result<Seen> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times_us = Vec::with_capacity(SYNCS);
    let all = Instant::now();
    while times_us.len() < SYNCS && all.elapsed() < SYNCS_TIME {
        let begun = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        times_us.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        sleep(BETWEEN_SYNCS).await;
    }
    Ok(Seen::new(all.elapsed(), times_us))
}

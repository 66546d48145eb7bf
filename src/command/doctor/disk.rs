//! The folder that holds events: whose it is, how long its disk takes to sync, and how much room it has.

use std::fs::Metadata;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::finding::{Finding, Verdict};
use super::on_thread;

const APPEND_BYTES: usize = 4096;
/// Enough for a p99, on a disk that is fit for it well under a second.
const APPENDS: usize = 100;
/// A slow disk is known to be one by then.
const APPENDS_WITHIN: Duration = Duration::from_secs(2);
/// From here on it is the disk that senders wait for.
const SYNC_WARNING: Duration = Duration::from_millis(20);
/// Half of all answers would come too late for some senders, and a group commit behind it for most.
const SYNC_BAD: Duration = Duration::from_millis(250);
const SPACE_WARNING_BYTES: u64 = 1 << 30;
const SPACE_BAD_BYTES: u64 = 64 << 20;

/// The store's folder, or the spool's.
pub(super) async fn check(folder: PathBuf, is_store: bool) -> Vec<Finding> {
    let shown = folder.display().to_string();
    let panicked = || vec![Finding::bad("folder", shown, "report this")];
    on_thread(move || look(&folder, is_store)).await.unwrap_or_else(panicked)
}

fn look(folder: &Path, is_store: bool) -> Vec<Finding> {
    let shown = folder.display();
    let existing = match nearest(folder) {
        Ok(existing) => existing,
        Err(error) => {
            return vec![Finding::bad(
                "folder",
                format!("{shown}: {error}"),
                "name another folder ([storage] path)",
            )];
        }
    };
    let mut findings = vec![if existing == folder {
        ownership(folder)
    } else {
        Finding::good("folder", format!("{shown} is not there yet, and will be made"))
    }];
    match measure(&existing) {
        Ok(mut times) => findings.push(speed(&mut times)),
        Err(error) => {
            let place = existing.display();
            let advice = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room there".to_owned(),
                _ => format!("let the user of chaski write there: chown, or mount {place} writable"),
            };
            findings[0] = Finding::bad("folder", format!("{place} cannot be written: {error}"), advice);
        }
    }
    findings.push(match rustix::fs::statvfs(&existing) {
        Ok(disk) => {
            let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
            space(bytes(disk.f_bavail), bytes(disk.f_blocks), is_store)
        }
        Err(error) => Finding::skipped("space", format!("cannot be asked: {error}")),
    });
    findings
}

/// The folder, or where it will be made.
fn nearest(folder: &Path) -> std::io::Result<PathBuf> {
    for candidate in folder.ancestors() {
        let candidate = if candidate.as_os_str().is_empty() { Path::new(".") } else { candidate };
        match std::fs::metadata(candidate) {
            Ok(found) if found.is_dir() => return Ok(candidate.to_owned()),
            Ok(_) => return Err(std::io::Error::other(format!("{} is not a folder", candidate.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("no part of this path exists"))
}

fn ownership(folder: &Path) -> Finding {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // A store has a handful of files; a folder with more is somebody else's.
    let files: Vec<(String, Metadata)> = files
        .take(64)
        .filter_map(|file| Some((file.file_name().to_string_lossy().into_owned(), file.metadata().ok()?)))
        .collect();
    match std::fs::metadata(folder) {
        Ok(own) => {
            let files: Vec<_> =
                files.iter().map(|(name, file)| (name.as_str(), file.uid(), file.mode())).collect();
            judge(folder, own.uid(), own.mode(), &files)
        }
        Err(error) => Finding::bad("folder", format!("{}: {error}", folder.display()), ""),
    }
}

/// Of the folder and of each file in it: owner and mode.
fn judge(folder: &Path, owner: u32, mode: u32, files: &[(&str, u32, u32)]) -> Finding {
    let shown = folder.display();
    if let Some((name, other, _)) = files.iter().find(|(_, other, _)| *other != owner) {
        let found = format!("{shown} belongs to user {owner}, {name} in it to user {other}");
        return Finding::warning(
            "folder",
            found,
            format!("was chaski run as another user? chown -R {owner} {shown}"),
        );
    }
    let is_open = |mode: u32| mode & 0o007 != 0;
    // Nobody comes past a closed folder.
    if is_open(mode) && files.iter().any(|(name, _, mode)| name.starts_with("chaski") && is_open(*mode)) {
        let found = format!("{shown} and what is in it is open to others (mode {:04o})", mode & 0o777);
        return Finding::warning("folder", found, format!("payments are in there: chmod -R o-rwx {shown}"));
    }
    Finding::good("folder", format!("{shown} is writable"))
}

/// How long each of some appends took to be on the disk. The file has no name and goes with this process.
fn measure(folder: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = tempfile::tempfile_in(folder)?;
    let record = [b'c'; APPEND_BYTES];
    let begun = Instant::now();
    let mut times = Vec::with_capacity(APPENDS);
    while times.len() < APPENDS && begun.elapsed() < APPENDS_WITHIN {
        let append = Instant::now();
        file.write_all(&record)?;
        file.sync_data()?;
        times.push(append.elapsed());
    }
    Ok(times)
}

/// A single late sync is nobody's fault; half of them late is the disk's.
fn speed(times: &mut [Duration]) -> Finding {
    times.sort_unstable();
    let at =
        |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied();
    let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let found = format!(
        "{} appends of 4 KiB with fdatasync: p50 {:.1} ms, p99 {:.1} ms",
        times.len(),
        ms(p50),
        ms(p99)
    );
    let verdict = match (p50, p99) {
        (p50, _) if p50 > SYNC_BAD => Verdict::Bad,
        (_, p99) if p99 > SYNC_WARNING => Verdict::Warning,
        _ => Verdict::Good,
    };
    let advice = if verdict == Verdict::Good {
        ""
    } else {
        "every 200 waits for this: take a local disk that nothing else keeps busy"
    };
    Finding::new("fsync", verdict, found, advice)
}

fn space(free: u64, all: u64, is_store: bool) -> Finding {
    let found = format!("{} of {} free", round(free), round(all));
    let verdict = match free {
        free if free < SPACE_BAD_BYTES => Verdict::Bad,
        free if free < SPACE_WARNING_BYTES => Verdict::Warning,
        _ => Verdict::Good,
    };
    let advice = match verdict {
        Verdict::Good => "",
        _ if is_store => "a full disk answers 503: make room, or shorten storage.retention",
        _ => "a full disk takes nothing while Kafka is away, and posts are answered 503 then: make room",
    };
    Finding::new("space", verdict, found, advice)
}

/// For people.
pub(super) fn round(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_half_of_its_syncs_and_warned_of_by_its_worst() {
        let verdict = |usual: u64, rare: u64| {
            let mut times = vec![Duration::from_millis(usual); 98];
            times.extend([Duration::from_millis(rare); 2]);
            speed(&mut times).verdict
        };
        assert_eq!(verdict(1, 2), Verdict::Good);
        assert_eq!(verdict(1, 300), Verdict::Warning);
        assert_eq!(verdict(21, 21), Verdict::Warning);
        assert_eq!(verdict(251, 251), Verdict::Bad);
        assert_eq!(speed(&mut [Duration::from_secs(2)]).verdict, Verdict::Bad);
    }

    #[test]
    fn room_runs_out_in_steps() {
        let advice = |is_store| space(1 << 20, 10 << 30, is_store).advice;
        assert!(advice(true).contains("retention") && !advice(false).contains("retention"));
        assert_eq!(space(5 << 30, 10 << 30, true).verdict, Verdict::Good);
        assert_eq!(space(900 << 20, 10 << 30, true).verdict, Verdict::Warning);
        assert_eq!(space(1 << 20, 10 << 30, true).verdict, Verdict::Bad);
    }

    #[test]
    fn a_store_is_one_users_and_closed_to_others() {
        let verdict = |mode, files: &[(&str, u32, u32)]| judge(Path::new("store"), 7, mode, files).verdict;
        assert_eq!(verdict(0o700, &[("chaski.db", 7, 0o644)]), Verdict::Good);
        assert_eq!(verdict(0o755, &[("chaski.db", 7, 0o600)]), Verdict::Good);
        assert_eq!(verdict(0o755, &[("chaski.db", 7, 0o644)]), Verdict::Warning);
        assert_eq!(verdict(0o700, &[("chaski.db", 0, 0o600)]), Verdict::Warning);
    }

    #[test]
    fn a_folder_that_is_missing_is_looked_for_above_and_a_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&folder.path().join("a/b")).unwrap(), folder.path());
        std::fs::write(folder.path().join("a"), "").unwrap();
        assert!(nearest(&folder.path().join("a")).is_err());
        assert!(nearest(&folder.path().join("a/b")).is_err());
    }
}

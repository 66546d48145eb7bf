//! From `env:NAME` or `file:PATH` to the secret itself, and which secrets are refused.
//!
//! Nothing here puts a secret, or what was written where a reference should be, into a message.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use chaski_common::secret::Secret;
use jiff::Timestamp;

use super::problem::Reason;
use super::value::Refusal;

/// Most bytes a secret's file holds.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Fewer than this can be tried out.
pub(super) const BYTES_MIN: usize = 16;

/// Where a secret is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference<'a> {
    Env(&'a str),
    File(&'a Path),
}

/// A secret could not be fetched.
#[derive(Debug)]
pub(super) enum Absent {
    /// The variable is not set; may be accepted of a secret that is on its way out.
    Unset(String),
    Refused(Refusal),
}

impl<'a> Reference<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("env:") {
            let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            return (letters && name.bytes().next().is_some_and(|first| !first.is_ascii_digit()))
                .then_some(Self::Env(name));
        }
        text.strip_prefix("file:")
            .filter(|path| !path.is_empty() && !path.contains('\0'))
            .map(|path| Self::File(Path::new(path)))
    }

    pub(super) fn check(text: &'a str) -> Result<(), Refusal> {
        match Self::parse(text) {
            Some(_) => Ok(()),
            None => Err((
                Reason::Insecure,
                "a secret is never written in the file".to_owned(),
                "write where it is kept: \"env:NAME\" or \"file:PATH\"".to_owned(),
            )),
        }
    }

    /// Fetches the secret; a relative path starts at `folder`.
    pub(super) fn fetch(self, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Secret, Absent> {
        match self {
            Self::Env(name) => match env(name) {
                Some(value) => Ok(Secret::new(value)),
                None => Err(Absent::Unset(name.to_owned())),
            },
            Self::File(path) => {
                read_private(&folder.join(path)).map(strip_line_end).map(Secret::new).map_err(Absent::Refused)
            }
        }
    }

    /// When the secret's file was last written; none for a variable.
    pub(super) fn written_at(self, folder: &Path) -> Option<Timestamp> {
        let Self::File(path) = self else { return None };
        std::fs::metadata(folder.join(path)).ok()?.modified().ok()?.try_into().ok()
    }
}

/// Reads a file that nobody but its owner, or this process's group, may read: see [`Readers::are_private`].
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, Refusal> {
    let shown = path.display();
    let refused = |message: String, hint: &str| (Reason::SecretPermissions, message, hint.to_owned());
    let unreadable = |error: &std::io::Error| refused(format!("cannot read {shown}: {error}"), "");
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(refused(format!("{shown} is not a file of at most 64 KiB"), ""));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if !Readers::of_this_process().are_private(mode, metadata.uid(), metadata.gid()) {
        return Err(refused(
            format!("{shown} is open to others (mode {mode:04o})"),
            &format!("run: chmod 600 {shown}"),
        ));
    }
    let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    Ok(bytes)
}

/// As whom this process reads files.
struct Readers {
    user: u32,
    groups: Vec<u32>,
}

impl Readers {
    fn of_this_process() -> Self {
        let mut groups = vec![rustix::process::getegid().as_raw()];
        groups.extend(
            rustix::process::getgroups().unwrap_or_default().into_iter().map(rustix::process::Gid::as_raw),
        );
        Self { user: rustix::process::geteuid().as_raw(), groups }
    }

    /// Whether a file of this mode and owner is a secret still. Its owner may do anything. A group may read it, and
    /// no more, if the file is root's, who could read it anyway, and the group is one of ours or root's own: so
    /// Kubernetes (`fsGroup`), packages and systemd (credentials, by an access list whose mask shows as the group's
    /// bits) hand a secret to a process that is not its owner. Others may nothing.
    fn are_private(&self, mode: u32, owner: u32, group: u32) -> bool {
        let handed_down = owner == 0 && self.user != 0 && (group == 0 || self.groups.contains(&group));
        match mode & 0o077 {
            0 => true,
            0o040 => handed_down,
            _ => false,
        }
    }
}

fn strip_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

/// Why a secret protects nothing, if so: by its text, or by the key that stands in it, if that is another.
pub(crate) fn weakness(secret: &Secret, key: Option<&Secret>) -> Option<String> {
    let decoded = || key.and_then(weakness_of).map(|weakness| format!("decoded, {weakness}"));
    weakness_of(secret).map(str::to_owned).or_else(decoded)
}

fn weakness_of(secret: &Secret) -> Option<&'static str> {
    let bytes = secret.expose();
    if bytes.is_empty() {
        return Some("the secret is empty");
    }
    if bytes.len() < BYTES_MIN {
        return Some("the secret is shorter than 16 bytes");
    }
    let mut seen = [false; 256];
    bytes.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    if seen.iter().filter(|&&seen| seen).count() < 4 {
        return Some("the secret is one pattern repeated");
    }
    is_placeholder(bytes).then_some("the secret is a placeholder")
}

/// Whether the letters and digits are nothing but words that stand in for a secret.
fn is_placeholder(bytes: &[u8]) -> bool {
    const WORDS: &[&str] = &[
        "changeme",
        "change",
        "changeit",
        "me",
        "secret",
        "password",
        "passwd",
        "pass",
        "test",
        "testing",
        "example",
        "default",
        "webhook",
        "webhooks",
        "admin",
        "placeholder",
        "todo",
        "fixme",
        "my",
        "your",
        "the",
        "this",
        "a",
        "key",
        "here",
        "insert",
        "replace",
        "token",
        "dummy",
        "sample",
        "demo",
        "insecure",
        "chaski",
        "string",
        "value",
        "xxx",
        "x",
        "foo",
        "bar",
        "123",
        "1234",
        "1234567890",
        "0123456789",
        "12345678",
        "whsec",
    ];
    let letters: Vec<u8> =
        bytes.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
    if letters.len() > 256 {
        return false;
    }
    // reachable[i]: the first i letters are words and nothing else.
    let mut reachable = vec![false; letters.len() + 1];
    reachable[0] = true;
    for start in 0..letters.len() {
        if reachable[start] {
            for word in WORDS {
                if letters[start..].starts_with(word.as_bytes()) {
                    reachable[start + word.len()] = true;
                }
            }
        }
    }
    reachable[letters.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_well_known_secrets_are_weak() {
        for weak in [
            "",
            "12345678",
            "fifteen-bytes-x",
            "changeme-changeme-changeme",
            "SecretSecretSecret",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "my-test-secret-key",
            "whsec_changeme_changeme",
            "----------------",
        ] {
            assert!(weakness_of(&Secret::new(weak)).is_some(), "{weak}");
        }
        for strong in [
            "k3J9-example-0aX7qLmZ",
            "4f1c0b7a9e2d4c6f8a1b3d5e7f90a2b4",
            "sixteen bytes ok!",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            assert!(weakness_of(&Secret::new(strong)).is_none(), "{strong}");
        }
    }

    #[test]
    fn a_reference_names_a_variable_or_a_file() {
        assert_eq!(Reference::parse("env:PE_SECRET"), Some(Reference::Env("PE_SECRET")));
        assert_eq!(Reference::parse("file:/run/s"), Some(Reference::File(Path::new("/run/s"))));
        for text in ["", "env:", "env:1A", "env:A B", "file:", "hunter2", "ENV:A"] {
            assert_eq!(Reference::parse(text), None, "{text}");
            let (_, message, hint) = Reference::check(text).unwrap_err();
            assert!(text.is_empty() || !format!("{message}{hint}").contains("hunter2"));
        }
    }

    #[test]
    fn a_group_may_read_what_root_has_handed_to_it() {
        let (root, us, ours, theirs) = (0, 65_532, 2000, 3000);
        let service = Readers { user: us, groups: vec![us, ours] };
        for (mode, owner, group, expected) in [
            (0o600, us, us, true),
            (0o400, root, theirs, true),
            // What Kubernetes makes of a secret with fsGroup.
            (0o440, root, ours, true),
            (0o640, root, ours, true),
            // What systemd makes of a credential.
            (0o440, root, root, true),
            (0o440, root, theirs, false),
            (0o640, us, ours, false),
            (0o660, root, ours, false),
            (0o450, root, ours, false),
            (0o444, root, ours, false),
            (0o404, root, ours, false),
            (0o604, us, us, false),
        ] {
            assert_eq!(service.are_private(mode, owner, group), expected, "{mode:o} {owner} {group}");
        }
        let as_root = Readers { user: root, groups: vec![root, ours] };
        assert!(as_root.are_private(0o600, root, root) && !as_root.are_private(0o640, root, ours));
    }

    #[test]
    fn a_secret_file_others_can_read_is_refused_and_one_line_end_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "0123456789-abcdef\r\n").unwrap();
        let fetch = || Reference::File(Path::new("s")).fetch(folder.path(), &|_| None);
        for mode in [0o644, 0o640, 0o602] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(fetch(), Err(Absent::Refused((Reason::SecretPermissions, ..)))), "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fetch().unwrap().expose(), b"0123456789-abcdef");
    }
}

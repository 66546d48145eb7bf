//! What a command needs to reach the store, and no more: an operator's shell need not have the secrets of
//! sources and destinations, and a slip in their tables must not stand between a person and a dead letter.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use chaski_common::secret::Secret;

use super::{Checker, ConfigErrors, StorageConfig, StorageKind};

/// Where the store is, and where the process that may have it open answers.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessConfig {
    /// Where the events are.
    pub storage: StorageConfig,
    /// Where the admin API is reached.
    pub admin: SocketAddr,
    /// Its bearer token.
    pub token: Option<Secret>,
    /// The names of the destinations, be these right or wrong.
    pub destinations: BTreeSet<Arc<str>>,
}

impl AccessConfig {
    /// Reads `[admin]` and `[storage]` of a file, with the variables of this process.
    ///
    /// # Errors
    /// What is wrong with these two, or with the file as a whole.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = super::read_file(path)?;
        Self::parse(&text, path, &|name| std::env::var(name).ok())
    }

    /// Reads `[admin]` and `[storage]` of a text as the content of `file`.
    ///
    /// # Errors
    /// What is wrong with these two, or with the text as a whole.
    pub fn parse(
        text: &str,
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let mut checker = Checker::new(file, env);
        let config = checker.access(text);
        checker
            .report
            .forget_keys(|key| !["admin", "storage"].iter().any(|section| key.starts_with(section)));
        checker.report.finish()?;
        Ok(config.expect("a reading that ended early has reported why"))
    }
}

impl Checker<'_> {
    fn access(&mut self, text: &str) -> Option<AccessConfig> {
        let file = self.read(text)?;
        let admin = self.admin(file.section("admin"), file.section("ingest").address("listen"));
        let mut storage = self.storage(file.section("storage"));
        if let StorageKind::Kafka { options, .. } = &mut storage.kind {
            // It belongs to the edge; who only looks at the log has no use for it.
            options.spool = None;
            options.appends = false;
        }
        let destinations = &file.section("destinations").each;
        Some(AccessConfig {
            storage,
            admin: reachable(admin.listen),
            token: admin.token,
            destinations: destinations.iter().map(|(name, _)| name.as_str().into()).collect(),
        })
    }
}

/// An address that is listened on is not always one to connect to.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AccessConfig, ConfigErrors> {
        let env = |name: &str| (name == "TOKEN").then(|| "k3J9-0aX7qLmZ-token".to_owned());
        AccessConfig::parse(text, Path::new("/etc/chaski.toml"), &env)
    }

    #[test]
    fn the_rest_of_the_file_and_its_secrets_are_not_needed() {
        let text = "[admin]\nlisten = '0.0.0.0:9000'\ntoken = 'env:TOKEN'\n[storage]\npath = 'data'\n\
                    [sources.a]\nprovider = 'nobody'\nsecrets = ['env:NOT_THERE']\n";
        let access = parse(text).unwrap();
        assert_eq!(access.storage.kind, StorageKind::Embedded { path: "/etc/data".into() });
        assert_eq!(access.admin.to_string(), "127.0.0.1:9000");
        assert_eq!(access.token.unwrap().expose(), b"k3J9-0aX7qLmZ-token");
    }

    #[test]
    fn its_own_tables_and_the_syntax_are_checked() {
        for text in [
            "[admin]\nlisten = 5\n",
            "[storage]\npaht = 'x'\n",
            "[admin]\ntoken = 'env:NOT_THERE'\n",
            "[sources\n",
        ] {
            assert_eq!(parse(text).unwrap_err().0.len(), 1, "{text}");
        }
    }
}

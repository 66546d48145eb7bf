//! What the fuzzers run: configuration files. Whatever is written, there is a configuration or a list of what is wrong.

use std::path::Path;

use chaski_common::fuzzing::Target;

use super::Config;

/// Every target of this package.
pub const TARGETS: &[Target] = &[Target { name: "config", run: config }];

const SECRET: &str = "wJ5rQnX2vKc9sT7mBf4y";

fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let env = |name: &str| (name != "ABSENT").then(|| SECRET.to_owned());
    match Config::parse(text, Path::new("/nowhere/chaski.toml"), &env) {
        Ok(config) => {
            let again = Config::parse(text, Path::new("/nowhere/chaski.toml"), &env);
            assert!(again.is_ok_and(|again| again.sources.len() == config.sources.len()));
            assert!(!format!("{config:?}").contains(SECRET), "a secret is shown");
        }
        Err(problems) => {
            assert!(!problems.0.is_empty(), "refused for nothing");
            let lines = text.lines().count().max(1);
            for problem in &problems.0 {
                let told = problem.to_string();
                assert!(!told.contains(SECRET), "a secret is told: {told}");
                assert!(problem.line <= lines + 1, "{told}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_configuration_or_a_list_of_what_is_wrong() {
        chaski_common::fuzzing::brief(TARGETS[0]);
    }
}

//! `chaski reload`: a running process reads its configuration again.

use std::process::ExitCode;

use crate::access::Access;
use crate::api::ReloadConfiguration;
use crate::config::AccessConfig;
use crate::output;

pub(super) async fn run(config: &AccessConfig, json: bool) -> anyhow::Result<ExitCode> {
    let access = Access::find(config).await?;
    let reloaded = access.call(ReloadConfiguration {}).await;
    access.close().await;
    let reloaded = match reloaded? {
        Ok(reloaded) => reloaded,
        Err(problems) => {
            output::say(problems);
            output::say("nothing has changed: the old configuration stays in force");
            return Ok(ExitCode::from(super::EXIT_CONFIG));
        }
    };
    if json {
        output::json(&reloaded)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "reloaded: {}, {}",
        output::count(reloaded.sources as u64, "source"),
        output::count(reloaded.destinations as u64, "destination")
    ));
    reloaded.warnings.iter().for_each(|warning| output::say(format_args!("warning: {warning}")));
    if !reloaded.needs_restart.is_empty() {
        output::say(format_args!(
            "changed, and in force after a restart only: {}",
            reloaded.needs_restart.join(", ")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

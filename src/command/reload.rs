//! `chaski reload`: a running process reads its configuration again.

use crate::access::Access;
use crate::api::ReloadConfiguration;
use crate::config::AccessConfig;
use crate::output;

pub(super) async fn run(config: &AccessConfig, json: bool) -> anyhow::Result<()> {
    let access = Access::find(config).await?;
    let reloaded = access.call(ReloadConfiguration {}).await;
    access.close().await;
    let reloaded = reloaded?;
    if json {
        return output::json(&reloaded);
    }
    output::line(format_args!(
        "reloaded: {} sources, {} destinations",
        reloaded.sources, reloaded.destinations
    ));
    if !reloaded.needs_restart.is_empty() {
        output::say(format_args!(
            "changed, and in force after a restart only: {}",
            reloaded.needs_restart.join(", ")
        ));
    }
    Ok(())
}

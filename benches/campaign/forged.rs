//! Forgeries: a flood of wrong signatures from many addresses beside a genuine sender, whose address some forgers
//! share. A proxy in front tells the addresses.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Plan, Target, random};
use crate::callback::{Callbacks, Signature};
use crate::load::{Expected, Senders};
use crate::machine;

const CONNECTIONS: usize = 32;
const FORGER_CONNECTIONS: usize = 512;
/// One of so many forgers has the genuine sender's address.
const SHARES_ADDRESS: usize = 16;
const GENUINE: &str = "203.0.113.7";

pub(super) async fn run(plan: &Plan) -> anyhow::Result<Value> {
    let (forged_per_second, per_second, seconds) = plan.pick((10_000, 500, 20), (500, 50, 2));
    let target = Target::start(plan, "proxy_protocol_from = [\"127.0.0.0/8\"]").await?;
    let gateway = &target.gateway;
    let hello = |address: &str| format!("PROXY TCP4 {address} 192.0.2.1 1 443\r\n").into_bytes();
    let mut senders = Senders::connect_with(gateway.edge, CONNECTIONS, |_| hello(GENUINE)).await?;
    let warm_up = Arc::new(Callbacks::render(0, 2 * per_second, Signature::Right)?);
    senders.post(&warm_up, warm_up.count(), Expected::Accepted).await?;
    let mut forgers = Senders::connect_with(gateway.edge, FORGER_CONNECTIONS, |number| {
        let host = random(plan.seed.wrapping_add(number as u64));
        if number % SHARES_ADDRESS == 0 {
            hello(GENUINE)
        } else {
            hello(&format!("198.18.{}.{}", host >> 8 & 0xff, host & 0xff))
        }
    })
    .await?;
    let (before, cpu) = (gateway.process.memory()?, gateway.process.cpu()?);

    let begin_us = machine::now_us() + 500_000;
    let at = |per_second: usize| move |index: usize| begin_us + (index * 1_000_000 / per_second) as u64;
    let genuine = Arc::new(Callbacks::render(warm_up.count(), per_second * seconds, Signature::Right)?);
    let forged = Arc::new(Callbacks::render(usize::pow(10, 9), forged_per_second, Signature::Forged)?);
    let (answered, refused) = tokio::try_join!(
        senders.keep_to(&genuine, at(per_second), Expected::Accepted),
        forgers.offer(&forged, forged_per_second * seconds, at(forged_per_second), Expected::Rejected)
    )?;
    let (after, cpu) = (gateway.process.memory()?, gateway.process.cpu()? - cpu);
    drop((senders, forgers));
    // Nothing but what is genuine is in the store.
    target.gateway.stop().await?.must_be(warm_up.tally().and(genuine.tally()))?;
    let elapsed = refused.refused.elapsed.as_secs_f64();
    Ok(json!({
        "forged": refused.refused.count(),
        "forged_per_second": refused.refused.count() as f64 / elapsed,
        "forged_answers": refused.statuses,
        "forged_ms": { "p50": refused.refused.quantile_ms(0.5), "p99": refused.refused.quantile_ms(0.99) },
        "forged_stored": 0,
        "genuine": answered.count(),
        "genuine_failed": 0,
        "genuine_ms": { "p50": answered.quantile_ms(0.5), "p99": answered.quantile_ms(0.99) },
        "cpu_seconds": cpu.as_secs_f64(),
        "resident_mib": { "before": before.now_mib, "after": after.now_mib },
    }))
}

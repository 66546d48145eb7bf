//! A destination: whether an attempt could get as far as sending its request. Nothing is sent.

use chaski_common::clock::Clock;
use chaski_dispatcher::destination::DestinationSpec;
use chaski_dispatcher::{Reached, Step, Unreachable, reach};

use super::finding::{Finding, Verdict};
use super::tls::expiry;

pub(super) async fn check(spec: DestinationSpec) -> Vec<Finding> {
    let check = format!("destination {}", spec.name);
    let url = spec.shown_url();
    match reach(&spec).await {
        Ok(reached) => connected(&check, &url, &reached),
        Err(error) => vec![failed(&check, &url, &error)],
    }
}

fn connected(check: &str, url: &str, Reached { address, took, certificates }: &Reached) -> Vec<Finding> {
    let found = format!("{url}: connected to {address} in {:.0} ms", took.as_secs_f64() * 1000.0);
    let mut findings = vec![Finding::good(check, found)];
    // Those after the first are somebody else's to renew, and a handshake has just found them good.
    let own = certificates.first().map(|der| expiry(check, der, Clock::system().now(), true));
    findings.extend(own.map(|finding| match finding.verdict {
        Verdict::Warning => Finding { advice: "ask its owner to renew it".to_owned(), ..finding },
        _ => finding,
    }));
    findings
}

fn failed(check: &str, url: &str, error: &Unreachable) -> Finding {
    let advice = match error.step() {
        Step::Name => "mend the host in its url, or the name servers of this machine",
        Step::Egress => "no delivery ever goes to such an address: write another url",
        Step::Connect => "start the receiver, or open the way to it; events wait in the backlog meanwhile",
        Step::Tls => "its certificate must be good and signed by a public authority; ask its owner",
    };
    Finding::bad(check, format!("{url}: {}", crate::chain(error)), advice)
}

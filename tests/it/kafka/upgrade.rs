//! A rolling upgrade: every process is stopped in order and started again, again and again, while merchants are being
//! paid. Nobody who posts through a load balancer notices.

use super::{Fleet, Half};
use crate::harness::{Balancer, Layout, Topics, eventually};
use crate::town::{Faults, Town, seed};

const RESTARTS: usize = 20;

#[test]
fn a_rolling_upgrade_loses_nothing_and_refuses_nobody_while_another_edge_is_up() {
    let town = Town::at_leisure("upgrade", seed());
    let topics = Topics::shared();
    // As long as the balancer takes to notice, and some more.
    let mut layout = Layout { ingest: "stop_delay = \"1s\"".to_owned(), ..town.layout() };
    for destination in &mut layout.destinations {
        // A dispatcher that stops waits for its attempts.
        destination.settings = destination.settings.replace("timeout = \"2s\"", "timeout = \"1s\"");
        assert!(destination.settings.contains("\"1s\""));
    }
    let spawn = |role: &'static str| Half::spawn(&topics, &layout, &[role]);
    let edges = vec![spawn("ingest"), spawn("ingest")];
    let dispatchers = vec![spawn("dispatch"), spawn("dispatch")];
    let mut fleet = Fleet { edges, dispatchers };
    fleet.wait_until_running();
    let balancer = Balancer::before(fleet.edges.iter().map(|edge| (edge.site.edge, edge.site.admin)));
    let all_are_ready = || eventually("all edges ready", || balancer.all_are_ready().then_some(()));
    all_are_ready();
    town.busy(&[balancer.address], || {
        for turn in 0..RESTARTS / 2 {
            // Both kinds at once, as two deployments are rolled; of each kind one at a time.
            let (edge, dispatcher) = (&mut fleet.edges[turn % 2], &mut fleet.dispatchers[turn % 2]);
            std::thread::scope(|scope| {
                scope.spawn(|| edge.restart());
                scope.spawn(|| dispatcher.restart());
            });
            all_are_ready();
        }
    });
    // Each dispatcher gives its partitions away and gets some back: what is under way then may be delivered by both.
    town.judge_edges(Faults::kills(RESTARTS as u64), &topics, || fleet.destinations());
    assert_eq!(balancer.turned_away(), 0, "no edge took a connection");
    assert_eq!(town.cut(), 0, "connections that ended without an answer");
    town.was_served();
    fleet.stop();
}

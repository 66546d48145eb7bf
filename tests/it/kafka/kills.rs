//! SIGKILL of edges and dispatchers at random, under load.

use std::time::Duration;

use super::Fleet;
use crate::harness::{Random, Topics, pause};
use crate::town::{Faults, Moment, Town, seed, setting};

const KILLS: u64 = 24;

#[test]
fn no_event_answered_200_is_lost_however_often_edges_and_dispatchers_are_killed() {
    let kills = setting("CHASKI_CRASH_KILLS").unwrap_or(KILLS);
    let town = Town::new("kills", seed());
    let mut random = Random::new(seed());
    let topics = Topics::shared();
    let mut fleet = Fleet::start(&topics, &town.layout());
    let doors = fleet.doors();
    town.busy(&doors, || {
        for _ in 0..kills {
            let moment = Moment::any(&mut random);
            let victim = random.between(0, 5) as usize;
            pause(Duration::from_millis(random.between(100, 800)));
            // The last edge that is up is left alone, or nobody could pay.
            if victim < 2 {
                fleet.edges[1 - victim].gateway.wait_until_running();
            }
            town.wait_for(&moment);
            match victim {
                0 | 1 => fleet.edges[victim].kill(),
                _ => fleet.dispatchers[victim - 2].kill(),
            }
            town.calm();
        }
        fleet.wait_until_running();
    });
    // Each takes partitions from one process, and takes them back when it is up again.
    town.judge_edges(Faults::kills(2 * kills), &topics, || fleet.destinations());
    fleet.stop();
    assert!(town.answered() > kills * 5, "too few events to prove anything: {}", town.answered());
}

//! Promise 2 under kill -9: the real binary dies again and again while senders post and receivers fail, and in
//! the end every event that was answered 200 is at every destination.
//!
//! `CHASKI_CRASH_KILLS` and `CHASKI_TEST_SEED` choose another run; the seed decides what is sent, how receivers
//! answer and when the process dies, as far as the machine's timing lets it.

use std::collections::BTreeMap;
use std::time::Duration;

use chaski_common::storage::Position;
use serde_json::json;

use crate::harness::{Gateway, Random, Site, Storage, pause};
use crate::town::{Faults, Moment, Town, seed, setting};

/// A start takes longer with brokers to ask; `kafka/kills.rs` kills more of them.
const fn kills(storage: &Storage) -> u64 {
    match storage {
        Storage::File => 32,
        Storage::Topics(_) => 10,
    }
}

#[test]
fn no_event_answered_200_is_lost_however_often_the_process_is_killed() {
    let seed = seed();
    let town = Town::new("crash", seed);
    // What was written is not lost with the process, only what was not: a commit must take time to be met.
    let site = Site::new(&town.layout()).on_faulty_disk();
    let kills = setting("CHASKI_CRASH_KILLS").unwrap_or_else(|| kills(&site.storage));
    site.disk_fails("slow", true);
    let gateway =
        town.busy(&[site.edge], || kill_again_and_again(&site, &town, kills, &mut Random::new(seed)));
    town.judge(Faults::kills(kills), || gateway.call("destinations", &json!({})));
    gateway.stop();
    assert!(town.answered() > kills * 5, "too few events to prove anything: {}", town.answered());
    assert!(kills == 0 || town.cut() > 0, "no kill ever met a post");
}

fn kill_again_and_again(site: &Site, town: &Town, kills: u64, random: &mut Random) -> Gateway {
    let mut marks = BTreeMap::new();
    let mut gateway = site.spawn();
    for kill in 1..=kills {
        let moment = Moment::any(random);
        if matches!(moment, Moment::Starting) {
            pause(Duration::from_millis(random.between(0, 80)));
        } else {
            gateway.wait_until_running();
            marks_never_go_back(&gateway, &mut marks);
            pause(Duration::from_millis(random.between(50, 400)));
            town.wait_for(&moment);
        }
        assert!(
            gateway.exited().is_none(),
            "it ended by itself before kill {kill} ({moment:?}): {:#?}",
            gateway.log()
        );
        gateway.kill();
        town.calm();
        gateway = site.spawn();
    }
    gateway.wait_until_running();
    marks_never_go_back(&gateway, &mut marks);
    gateway
}

/// I3, as far as it can be seen from outside: of several partitions the one furthest behind is shown.
fn marks_never_go_back(gateway: &Gateway, marks: &mut BTreeMap<(String, u32), Position>) {
    for destination in gateway.call("destinations", &json!({})).as_array().unwrap() {
        let name = destination["destination"].as_str().unwrap().to_owned();
        let mark = Position(destination["mark"].as_u64().unwrap());
        let before = marks.insert((name.clone(), mark.partition()), mark).unwrap_or_default();
        assert!(mark >= before, "the mark of {name} went back from {before:?} to {mark:?}");
    }
}

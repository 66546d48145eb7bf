//! Redis is killed, frozen, emptied and full, under load: it may cost duplicates, and never an event.

use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

use chaski_common::storage::kafka::testing::{self, RedisServer};

use super::Fleet;
use crate::harness::{Topics, connect, pause};
use crate::town::{Faults, Town, seed};

/// Of each fault, and of the time between two.
const WHILE: Duration = Duration::from_secs(3);

/// Says something to Redis and waits until it agrees.
fn tell(redis: &RedisServer, command: &str) {
    let url = String::from_utf8(redis.options().url.expose().to_vec()).unwrap();
    let address = url.trim_start_matches("redis://").trim_end_matches("/0").parse().unwrap();
    let mut stream = connect(address).unwrap();
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), "+OK", "{command}");
}

#[test]
fn whatever_happens_to_redis_callbacks_are_taken_and_none_is_lost() {
    let town = Town::at_leisure("redis", seed());
    let mut redis = RedisServer::start();
    let topics = Topics::on(vec![testing::address().to_owned()], &redis);
    let fleet = Fleet::start(&topics, &town.layout());
    town.busy(&fleet.doors(), || {
        let goes_on = |what: &str| town.goes_on(what, WHILE);
        goes_on("all is well");
        redis.kill();
        goes_on("killed");
        redis.run();
        goes_on("back, and empty");
        redis.signal("STOP");
        goes_on("frozen");
        redis.signal("CONT");
        goes_on("thawed");
        for _ in 0..20 {
            tell(&redis, "FLUSHALL");
            pause(WHILE / 20);
        }
        goes_on("emptied");
        tell(&redis, "CONFIG SET maxmemory-policy noeviction");
        tell(&redis, "CONFIG SET maxmemory 1mb");
        goes_on("out of memory");
        tell(&redis, "CONFIG SET maxmemory 0");
        goes_on("with memory again");
    });
    town.judge(Faults::kills(0).forgetful(), || fleet.destinations());
    fleet.stop();
}

#[test]
fn a_redis_that_is_late_costs_copies_of_what_says_so_and_of_nothing_else() {
    const STALLS: u32 = 4;
    let town = Town::new("late", seed());
    let redis = RedisServer::start();
    let topics = Topics::on(vec![testing::address().to_owned()], &redis);
    let fleet = Fleet::start(&topics, &town.layout());
    town.busy(&fleet.doors(), || {
        for _ in 0..STALLS {
            town.goes_on("all is well", WHILE / 2);
            redis.signal("STOP");
            town.goes_on("late", WHILE / 2);
            redis.signal("CONT");
        }
        town.goes_on("all is well again", WHILE);
    });
    // Nobody dies; five processes that share the partitions of a busy machine may still hand some over.
    town.judge_edges(Faults::kills(1), &topics, || fleet.destinations());
    fleet.stop();
}

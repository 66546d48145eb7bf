//! Sequences with a Redis that is gone, empty, full, or says no, and with an edge that is killed between two steps of an
//! accept: always on Kafka, whatever the storage of the run.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chaski_common::storage::kafka::testing::{self, Broker, RedisServer};
use serde_json::{Value, json};

use super::case::Case;
use super::steps::{self, Held};
use crate::harness::{
    Destination, Gateway, Layout, Network, Receiver, Site, Storage, Topics, Weather, connect, eventually,
    post,
};

/// A name for a payment that is no case's.
const OTHERS: usize = 500_000;
/// Longer than an edge waits for Redis.
const LATE: Duration = Duration::from_millis(400);

fn address(redis: &RedisServer) -> SocketAddr {
    let url = String::from_utf8(redis.options().url.expose().to_vec()).unwrap();
    url.trim_start_matches("redis://").trim_end_matches("/0").parse().unwrap()
}

/// Says something to Redis and returns the first line of what it says.
fn tell(redis: &RedisServer, command: &str) -> String {
    let mut stream = connect(address(redis)).unwrap();
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
    answer.trim().to_owned()
}

fn sick(gateway: &Gateway) -> u64 {
    gateway.count("chaski_dedup_degraded", &[])
}

/// Payments of nobody's case, until the edge uses Redis again.
fn recover(gateway: &Gateway, number: &mut usize) {
    eventually("Redis to be used again", || {
        *number += 1;
        assert_eq!(steps::send(gateway, &json!({}), OTHERS + *number).status, 200);
        (sick(gateway) == 0).then_some(())
    });
}

/// Does to Redis what a step says; whether the step was about it.
fn fault(redis: &mut RedisServer, step: &Value) -> bool {
    if step["kill"] == "redis" {
        redis.kill();
    } else if step["restart"] == "redis" {
        redis.kill();
        redis.run();
    } else if let Some(command) = step["redis"].as_str() {
        tell(redis, command);
    } else if let Some(stub) = step["redis_stub"].as_str() {
        // A real server that is in the state in which it says so.
        if stub.starts_with("-OOM") {
            tell(redis, "CONFIG SET maxmemory-policy noeviction");
            tell(redis, "CONFIG SET maxmemory 1");
        } else if stub.starts_with("-READONLY") {
            tell(redis, "CONFIG SET replica-serve-stale-data yes");
            tell(redis, "REPLICAOF 127.0.0.1 1");
        } else if stub.starts_with("-NOAUTH") {
            tell(redis, "CONFIG SET requirepass nobody-knows\r\nCLIENT KILL TYPE normal");
        } else {
            assert_eq!(stub, "late_reply");
            tell(redis, &format!("CLIENT PAUSE {} ALL", LATE.as_millis()));
        }
    } else {
        return false;
    }
    true
}

fn judge(gateway: &Gateway, redis: &mut RedisServer, case: &Case, number: usize) -> Result<(), String> {
    let before = Held::of(gateway);
    let steps = case.build["steps"].as_array().unwrap();
    let mut last = None;
    for (index, step) in steps.iter().enumerate() {
        if fault(redis, step) {
            continue;
        }
        let is_last = index + 1 == steps.len();
        for time in 0..step["times"].as_u64().unwrap_or(1) {
            // Copies are of one payment, but where the case is about many.
            let payment = match (&step["key"], &case.expect.outcome) {
                (Value::Null, _) => number * 1000 + time as usize,
                (key, _) => number * 1000 + usize::from(key.as_str().unwrap().as_bytes()[0]),
            };
            let answer = steps::send(gateway, &json!({}), payment);
            let first = if is_last && time > 0 { case.expect.outcome.as_str() } else { "accepted" };
            let expected = if is_last && steps.len() > 2 { case.expect.outcome.as_str() } else { first };
            if (answer.status, answer.outcome().as_str()) != (200, expected) {
                return Err(format!("{step}, {time}: {answer:?}"));
            }
            last = Some(answer);
        }
    }
    if last.is_none() {
        return Err("nothing was sent".to_owned());
    }
    match case.expect.then["metric"].as_str() {
        Some("chaski_dedup_degraded 1") => {
            eventually(&format!("{}: Redis to be missed", case.id), || (sick(gateway) == 1).then_some(()));
        }
        Some(other) => return Err(format!("nobody looks at {other}")),
        None => {}
    }
    before.check(gateway, &case.expect.then)
}

#[test]
fn whatever_redis_says_a_callback_is_taken_once_by_the_edge_that_knows_it() {
    let receiver = Receiver::start();
    let mut redis = RedisServer::start();
    let topics = Topics::on(vec![testing::address().to_owned()], &redis);
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::on(Storage::Topics(topics), &layout);
    let gateway = site.start();
    let (mut wrong, mut others) = (Vec::new(), 0);
    let cases =
        super::played(steps::GROUP).filter(|case| steps::is_about_servers(case) && !is_about_kills(case));
    for (number, case) in (1..).zip(cases) {
        recover(&gateway, &mut others);
        if let Err(what) = judge(&gateway, &mut redis, &case, number) {
            wrong.push(format!("{} {}: {what}", case.id, case.description));
        }
        // Fresh, whatever was done to it.
        redis.kill();
        redis.run();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    recover(&gateway, &mut others);
    gateway.stop();
}

fn is_about_kills(case: &Case) -> bool {
    case.build["steps"][0]["action"] == "kill9"
}

/// A wait of its own for each case would be as long again: the edge is killed for all, then all come again.
#[test]
fn a_callback_whose_edge_is_killed_between_two_steps_is_taken_when_it_comes_again() {
    let (receiver, redis, network) = (Receiver::start(), RedisServer::start(), Network::open());
    let (broker, inside) = Broker::start_behind(network.address.port());
    network.leads_to(inside);
    let topics = Topics { spool: false, ..Topics::on(vec![network.address.to_string()], &redis) };
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::on(Storage::Topics(topics), &layout);
    let mut gateway = site.start();
    let reserved = || tell(&redis, "DBSIZE").trim_start_matches(':').parse::<u64>().unwrap();
    let cases: Vec<(usize, Case)> = (1..).zip(super::played(steps::GROUP).filter(is_about_kills)).collect();
    for (number, case) in &cases {
        let known = reserved();
        match case.build["steps"][0]["failpoint"].as_str().unwrap() {
            // Nothing comes to the brokers, and what was on its way is gone.
            "after_reserve" => network.becomes(Weather::Reset),
            // It comes, and is appended when nobody is there to hear of it.
            "after_append" => broker.signal("STOP"),
            other => panic!("there is no way to {other}"),
        }
        std::thread::scope(|scope| {
            let cut = scope.spawn(|| {
                let (path, headers, body) = steps::callback(&json!({}), *number);
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(name, value)| (&**name, &**value)).collect();
                post(gateway.edge, &path, &headers, body.as_bytes())
            });
            eventually("the reservation", || (reserved() > known).then_some(()));
            gateway.kill();
            assert!(cut.join().unwrap().is_err(), "{}: it was answered", case.id);
        });
        network.becomes(Weather::Fair);
        broker.signal("CONT");
        gateway = site.start();
    }
    for (number, case) in &cases {
        let again = case.build["steps"].as_array().unwrap().last().unwrap();
        let (began, bound) = (Instant::now(), Duration::from_secs(again["max_s"].as_u64().unwrap()));
        let answer = eventually(&format!("{}: 200", case.id), || {
            let answer = steps::send(&gateway, &json!({}), *number);
            assert!([200, 503].contains(&answer.status), "{}: {answer:?}", case.id);
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(answer.outcome(), case.expect.outcome, "{}: {answer:?}", case.id);
        assert!(began.elapsed() < bound, "{}: after {:?}", case.id, began.elapsed());
        receiver.wait_for(&answer.id());
        let events = gateway.call("events", &json!({ "limit": 100 }));
        let published =
            events.as_array().unwrap().iter().filter(|event| event["id"] == answer.id().as_str()).count();
        let then = &case.expect.then;
        assert!(published >= 1, "{}: {events}", case.id);
        let most = then["published"].as_u64().or(then["published_max"].as_u64()).unwrap();
        assert!(published as u64 <= most, "{}: {events}", case.id);
    }
    gateway.stop();
}

//! What must hold between what was answered 200 and what the receivers have: pure, so that it can be shown to see
//! each kind of breach.

use std::collections::{BTreeMap, HashMap, HashSet};

pub(super) type Digest = [u8; 32];

/// What the senders know.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// Everything that was signed and posted, answered or not.
    pub(super) sent: HashSet<Digest>,
    /// How often anything was posted, the same bytes again included.
    pub(super) posts: u64,
    /// What was answered 200, and the id in that answer.
    pub(super) answered: HashMap<Digest, String>,
    /// Answers that break a promise by themselves.
    pub(super) broken: Vec<Violation>,
}

impl Ledger {
    pub(super) fn sent(&mut self, digest: Digest) {
        self.sent.insert(digest);
    }

    /// An answer 200 with this id and this `status` in its body.
    pub(super) fn answered(&mut self, digest: Digest, id: &str, status: &str) {
        match self.answered.insert(digest, id.to_owned()) {
            // The first answer to one that was stored before its sender could hear of it.
            None if matches!(status, "accepted" | "duplicate") => {}
            Some(known) if known != id => {
                self.broken.push(Violation::OtherId { at: "edge".into(), id: id.into(), known });
            }
            Some(_) if status == "duplicate" => {}
            // Accepted twice: the first 200 was not durable.
            Some(_) if status == "accepted" => self.broken.push(Violation::Forgotten { id: id.into() }),
            _ => self.broken.push(Violation::OddAnswer { what: format!("{status} for {id}") }),
        }
    }
}

/// One request at a receiver.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) id: String,
    pub(super) digest: Digest,
    /// Answered 2xx.
    pub(super) is_taken: bool,
    pub(super) at_ms: u64,
}

/// What was broken, as far as I4 counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// Crashes, and whatever takes deliveries from one process and gives them to another.
    pub(crate) count: u64,
    /// Attempts under way at once at each destination.
    pub(crate) concurrency: u64,
    /// The deduplication that edges share forgot: each resend may have been stored again.
    pub(crate) forgetful: bool,
}

impl Faults {
    pub(crate) const fn kills(count: u64) -> Self {
        Self { count, concurrency: 0, forgetful: false }
    }

    pub(crate) const fn forgetful(self) -> Self {
        Self { forgetful: true, ..self }
    }
}

/// The ids that an edge stored without asking the others, as it must when Redis is late on a busy machine, each with its
/// records in the log. Of these alone there may be as many events as records.
pub(crate) type Alone = HashMap<String, u64>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Answered 200, and never taken at this destination.
    Lost { at: String, id: String },
    /// A body at a receiver that nobody signed and sent: forged, or changed on its way.
    NotSent { at: String, id: String },
    /// Copies of one body under two ids.
    OtherId { at: String, id: String, known: String },
    /// Two bodies under one id.
    OtherBody { at: String, id: String },
    /// More was delivered twice than the crashes explain.
    TooManyCopies { at: String, extra: u64, bound: u64 },
    /// Answered 200, and later accepted as if it were new.
    Forgotten { id: String },
    /// An answer that is none of the contract's.
    OddAnswer { what: String },
}

/// One destination in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) events: u64,
    /// Taken again.
    pub(super) extra: u64,
    /// As many of these the crashes explain.
    pub(super) bound: u64,
}

/// Holds the receipts of each destination against the ledger (I1, I2, I4, I10).
pub(super) fn verdict(
    ledger: &Ledger,
    receipts: &BTreeMap<&'static str, Vec<Copy>>,
    faults: Faults,
    alone: &Alone,
) -> Result<BTreeMap<&'static str, Stats>, Vec<Violation>> {
    let is_fault = |violation: &&Violation| match violation {
        Violation::Forgotten { id } => !faults.forgetful && !alone.contains_key(id),
        _ => true,
    };
    let mut violations: Vec<Violation> = ledger.broken.iter().filter(is_fault).cloned().collect();
    let resent = if faults.forgetful {
        ledger.posts.saturating_sub(ledger.sent.len() as u64)
    } else {
        alone.values().map(|records| records - 1).sum()
    };
    let mut stats = BTreeMap::new();
    let mut id_of: HashMap<Digest, &str> =
        ledger.answered.iter().map(|(digest, id)| (*digest, id.as_str())).collect();
    let mut body_of: HashMap<&str, Digest> =
        ledger.answered.iter().map(|(digest, id)| (id.as_str(), *digest)).collect();
    for (&at, copies) in receipts {
        for copy in copies {
            let (at, id) = (at.to_owned(), copy.id.clone());
            if !ledger.sent.contains(&copy.digest) {
                violations.push(Violation::NotSent { at, id });
                continue;
            }
            let known = *id_of.entry(copy.digest).or_insert(&copy.id);
            if known != copy.id {
                violations.push(Violation::OtherId { at, id, known: known.to_owned() });
            } else if *body_of.entry(&copy.id).or_insert(copy.digest) != copy.digest {
                violations.push(Violation::OtherBody { at, id });
            }
        }
        let taken: Vec<&Copy> = copies.iter().filter(|copy| copy.is_taken).collect();
        let distinct: HashSet<Digest> = taken.iter().map(|copy| copy.digest).collect();
        let missing = ledger.answered.iter().filter(|(digest, _)| !distinct.contains(*digest));
        violations.extend(missing.map(|(_, id)| Violation::Lost { at: at.to_owned(), id: id.clone() }));
        let extra = (taken.len() - distinct.len()) as u64;
        let bound = faults.count * (faults.concurrency + busiest_half_second(&taken)) + resent;
        if extra > bound {
            violations.push(Violation::TooManyCopies { at: at.to_owned(), extra, bound });
        }
        stats.insert(at, Stats { events: distinct.len() as u64, extra, bound });
    }
    if violations.is_empty() { Ok(stats) } else { Err(violations) }
}

/// Whether something that was answered 200 is not yet everywhere.
pub(super) fn missing(ledger: &Ledger, receipts: &BTreeMap<&'static str, Vec<Copy>>) -> bool {
    receipts.values().any(|copies| {
        let taken: HashSet<Digest> =
            copies.iter().filter(|copy| copy.is_taken).map(|copy| copy.digest).collect();
        ledger.answered.keys().any(|digest| !taken.contains(digest))
    })
}

/// I4: beside what is under way, a crash forgets at most what was taken since the progress was last made durable;
/// that is at most what the destination ever took in 500 ms.
fn busiest_half_second(taken: &[&Copy]) -> u64 {
    let mut times: Vec<u64> = taken.iter().map(|copy| copy.at_ms).collect();
    times.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, time) in times.iter().enumerate() {
        while times[first] + 500 <= *time {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    type Stood = Result<BTreeMap<&'static str, Stats>, Vec<Violation>>;

    /// Where every edge has asked the others.
    fn judged(ledger: &Ledger, receipts: &BTreeMap<&'static str, Vec<Copy>>, faults: Faults) -> Stood {
        verdict(ledger, receipts, faults, &Alone::new())
    }

    const KILLS: Faults = Faults { concurrency: 1, ..Faults::kills(1) };

    fn digest(of: u8) -> Digest {
        [of; 32]
    }

    /// Two events, each answered and delivered once to both destinations, a second apart.
    fn right() -> (Ledger, BTreeMap<&'static str, Vec<Copy>>) {
        let mut ledger = Ledger::default();
        for of in [1, 2] {
            ledger.sent(digest(of));
            ledger.answered(digest(of), &of.to_string(), "accepted");
        }
        let copy = |of: u8| Copy {
            id: of.to_string(),
            digest: digest(of),
            is_taken: true,
            at_ms: u64::from(of) * 1000,
        };
        let receipts = ["erp", "orders"].into_iter().map(|at| (at, vec![copy(1), copy(2)])).collect();
        (ledger, receipts)
    }

    #[test]
    fn one_copy_of_each_everywhere_is_right() {
        let (ledger, receipts) = right();
        let stats = judged(&ledger, &receipts, KILLS).unwrap();
        assert_eq!(stats["orders"], Stats { events: 2, extra: 0, bound: 2 });
    }

    #[test]
    fn what_was_sent_and_not_answered_may_arrive_or_not() {
        let (mut ledger, mut receipts) = right();
        ledger.sent(digest(3));
        ledger.sent(digest(4));
        receipts.get_mut("erp").unwrap().push(Copy {
            id: "3".into(),
            digest: digest(3),
            is_taken: true,
            at_ms: 0,
        });
        assert!(judged(&ledger, &receipts, KILLS).is_ok());
    }

    #[test]
    fn a_crash_explains_a_few_copies() {
        let (ledger, mut receipts) = right();
        let again = receipts["erp"][0].clone();
        receipts.get_mut("erp").unwrap().push(Copy { at_ms: 5000, ..again });
        assert_eq!(judged(&ledger, &receipts, KILLS).unwrap()["erp"].extra, 1);
        let none = Faults { count: 0, ..KILLS };
        let too_many = Violation::TooManyCopies { at: "erp".into(), extra: 1, bound: 0 };
        assert_eq!(judged(&ledger, &receipts, none).unwrap_err(), [too_many]);
    }

    #[test]
    fn a_forgetful_deduplication_explains_as_many_copies_as_there_were_resends() {
        let (mut ledger, mut receipts) = right();
        ledger.posts = 3;
        ledger.answered(digest(2), "2", "accepted");
        for _ in 0..3 {
            let again = receipts["erp"][0].clone();
            receipts.get_mut("erp").unwrap().push(Copy { at_ms: 5000, ..again });
        }
        let too_many = Violation::TooManyCopies { at: "erp".into(), extra: 3, bound: 1 };
        assert_eq!(judged(&ledger, &receipts, Faults::kills(0).forgetful()).unwrap_err(), [too_many]);
        ledger.posts = 5;
        assert!(judged(&ledger, &receipts, Faults::kills(0).forgetful()).is_ok());
    }

    #[test]
    fn an_edge_that_asked_nobody_explains_the_copies_of_what_it_stored_and_of_nothing_else() {
        let none = Faults { concurrency: 0, ..Faults::kills(0) };
        let again = |id: &str| {
            let (mut ledger, mut receipts) = right();
            let of = id.parse().unwrap();
            ledger.answered(digest(of), id, "accepted");
            for copies in receipts.values_mut() {
                let again = copies[usize::from(of) - 1].clone();
                copies.push(Copy { at_ms: 9000, ..again });
            }
            (ledger, receipts)
        };
        let alone = Alone::from([("2".to_owned(), 2)]);
        let (ledger, receipts) = again("2");
        assert_eq!(verdict(&ledger, &receipts, none, &alone).unwrap()["erp"].bound, 1);
        // Another event that was accepted twice, or a copy more than there are records.
        let (ledger, receipts) = again("1");
        let forgotten = Violation::Forgotten { id: "1".into() };
        assert_eq!(verdict(&ledger, &receipts, none, &alone).unwrap_err(), [forgotten]);
        let (ledger, mut receipts) = again("2");
        let copies = receipts.get_mut("erp").unwrap();
        copies.push(copies[1].clone());
        let too_many = Violation::TooManyCopies { at: "erp".into(), extra: 2, bound: 1 };
        assert_eq!(verdict(&ledger, &receipts, none, &alone).unwrap_err(), [too_many]);
    }

    #[test]
    fn every_kind_of_breach_is_seen() {
        type Receipts = BTreeMap<&'static str, Vec<Copy>>;
        let lost = |at: &str| Violation::Lost { at: at.into(), id: "2".into() };
        type Plant = fn(&mut Ledger, &mut Receipts);
        let cases: Vec<(&str, Plant, Vec<Violation>)> = vec![
            (
                "answered and delivered nowhere",
                |_, receipts| receipts.values_mut().for_each(|copies| copies.truncate(1)),
                vec![lost("erp"), lost("orders")],
            ),
            (
                "lost at one destination",
                |_, receipts| receipts.get_mut("orders").unwrap().truncate(1),
                vec![lost("orders")],
            ),
            (
                "arrived and not taken",
                |_, receipts| receipts.get_mut("erp").unwrap()[1].is_taken = false,
                vec![lost("erp")],
            ),
            (
                "changed bytes",
                |_, receipts| receipts.get_mut("erp").unwrap()[1].digest = digest(9),
                vec![Violation::NotSent { at: "erp".into(), id: "2".into() }, lost("erp")],
            ),
            (
                "a forgery delivered",
                |_, receipts| {
                    receipts.get_mut("erp").unwrap().push(Copy {
                        id: "9".into(),
                        digest: digest(9),
                        is_taken: true,
                        at_ms: 0,
                    });
                },
                vec![Violation::NotSent { at: "erp".into(), id: "9".into() }],
            ),
            (
                "a copy under another id",
                |_, receipts| receipts.get_mut("erp").unwrap()[1].id = "x".into(),
                vec![Violation::OtherId { at: "erp".into(), id: "x".into(), known: "2".into() }],
            ),
            (
                "another body under a known id",
                |ledger, receipts| {
                    ledger.sent(digest(3));
                    receipts.get_mut("erp").unwrap().push(Copy {
                        id: "2".into(),
                        digest: digest(3),
                        is_taken: true,
                        at_ms: 0,
                    });
                },
                vec![Violation::OtherBody { at: "erp".into(), id: "2".into() }],
            ),
            (
                "too many copies",
                |_, receipts| {
                    let copies = receipts.get_mut("erp").unwrap();
                    for at_ms in [5000, 6000, 7000] {
                        copies.push(Copy { at_ms, ..copies[0].clone() });
                    }
                },
                vec![Violation::TooManyCopies { at: "erp".into(), extra: 3, bound: 2 }],
            ),
            (
                "accepted again",
                |ledger, _| ledger.answered(digest(2), "2", "accepted"),
                vec![Violation::Forgotten { id: "2".into() }],
            ),
            (
                "answered with another id",
                |ledger, _| {
                    ledger.answered(digest(2), "x", "duplicate");
                    ledger.answered.insert(digest(2), "2".into());
                },
                vec![Violation::OtherId { at: "edge".into(), id: "x".into(), known: "2".into() }],
            ),
            (
                "quarantined without a reason",
                |ledger, _| ledger.answered(digest(2), "2", "quarantined"),
                vec![Violation::OddAnswer { what: "quarantined for 2".into() }],
            ),
        ];
        for (name, plant, expected) in cases {
            let (mut ledger, mut receipts) = right();
            plant(&mut ledger, &mut receipts);
            assert_eq!(judged(&ledger, &receipts, KILLS).unwrap_err(), expected, "{name}");
        }
    }
}

//! The brokers and the topics on them.

use std::time::Duration;

use chaski_common::storage::kafka::{self, Cluster, Options, Step};

use super::finding::Finding;

const CHECK: &str = "kafka";
/// For each question: less than the check has, so that what the client complains of is still told.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

pub(super) async fn check(options: Options) -> Vec<Finding> {
    match kafka::inspect(&options, ANSWER_WITHIN).await {
        Ok(cluster) => judge(&options, &cluster),
        Err(error) => {
            let found = format!("{}: {}", options.brokers.join(", "), crate::chain(&error));
            vec![Finding::bad(
                CHECK,
                found,
                "start the brokers, or mend [storage] brokers and [storage.kafka]",
            )]
        }
    }
}

fn judge(options: &Options, Cluster { brokers, steps }: &Cluster) -> Vec<Finding> {
    let copies = usize::try_from(options.replication).unwrap_or(1);
    let found = format!("brokers: {brokers}, replication: {copies}");
    let mut findings = vec![if *brokers < copies {
        Finding::bad(CHECK, found, "start more brokers, or write a smaller [storage] replication")
    } else if copies == 1 {
        let advice = "one disk has it all: start three brokers, give the topics three copies \
                      (kafka-reassign-partitions.sh), and then set [storage] replication to 3";
        Finding::warning(CHECK, found, advice)
    } else if *brokers == copies {
        // With min.insync.replicas at 2 events are still taken when one of three is gone; its copies are not made
        // anew until it is back.
        Finding::good(CHECK, format!("{found}, none to spare"))
    } else {
        Finding::good(CHECK, found)
    }];
    for topic in options.topics() {
        let check = format!("topic {topic}");
        let of_this: Vec<&Step> = steps.iter().filter(|step| step.topic() == topic).collect();
        if of_this.is_empty() {
            findings.push(Finding::good(&check, "as it must be"));
        }
        for step in of_this {
            let found = step.to_string();
            findings.push(match step {
                // Nothing starts on such topics.
                Step::Create { .. } | Step::Grow { .. } => {
                    Finding::bad(&check, found, "chaski topics apply; until then no process starts")
                }
                Step::Refuse { .. } => Finding::bad(
                    &check,
                    found,
                    "another hand set it: change it there (see `chaski topics plan`)",
                ),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn verdicts(replication: i32, brokers: usize, steps: Vec<Step>) -> Vec<Verdict> {
        let options = Options { replication, ..Options::new(vec!["a:9092".to_owned()]) };
        judge(&options, &Cluster { brokers, steps }).into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn there_are_as_many_brokers_as_copies_at_least() {
        assert_eq!(verdicts(3, 3, Vec::new()), [Verdict::Good; 4]);
        assert_eq!(verdicts(3, 2, Vec::new())[0], Verdict::Bad);
        assert_eq!(verdicts(1, 3, Vec::new())[0], Verdict::Warning);
    }

    #[test]
    fn a_topic_that_no_process_starts_on_is_bad() {
        let topic = || "chaski.events".to_owned();
        let create = Step::Create { topic: topic(), partitions: 1, replication: 3, settings: Vec::new() };
        assert_eq!(verdicts(3, 4, vec![create])[1], Verdict::Bad);
        assert_eq!(verdicts(3, 4, vec![Step::Grow { topic: topic(), from: 1, to: 2 }])[1], Verdict::Bad);
        let why = "cleanup.policy is wrong".to_owned();
        assert_eq!(verdicts(3, 4, vec![Step::Refuse { topic: topic(), why }])[1], Verdict::Bad);
    }
}

#!/usr/bin/env python3
"""A reader of somebody else's: joins a consumer group of its own and prints events as JSON lines.

    read_events.py BROKERS TOPIC GROUP COUNT

Commits what it has printed and leaves the group. Fewer events than COUNT within a minute are a failure.
"""

import base64
import json
import sys
from pathlib import Path

ROOM = Path(__file__).resolve().parents[2] / "target" / "tests-python"
sys.path.insert(0, str(ROOM))

try:
    from kafka import KafkaConsumer
except ImportError:
    sys.exit(f"kafka-python is not in {ROOM}; get it with: make tools-test")

SILENCE_MS = 60_000


def main(brokers: str, topic: str, group: str, count: int) -> None:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=brokers.split(","),
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=SILENCE_MS,
    )
    read = 0
    for record in consumer:
        print(json.dumps({
            "partition": record.partition,
            "offset": record.offset,
            "key": record.key.decode(),
            "headers": {name: value.decode() for name, value in record.headers},
            "body": base64.b64encode(record.value).decode(),
        }))
        read += 1
        if read == count:
            break
    # What has been handed out, and nothing of what was fetched ahead of it.
    consumer.commit()
    consumer.close(autocommit=False)
    if read < count:
        sys.exit(f"{read} events instead of {count}")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))

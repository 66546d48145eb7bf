#!/usr/bin/env python3
"""Every expression of every rule and every panel, against a real Prometheus that watches the real binary.

`expressions.py BINARY` starts chaski twice, embedded and on Kafka with Redis, and sends it traffic. While all is well no rule
may have a result. Then come the faults: a receiver that answers 500, one that hangs, one that is gone, forgeries, a signed
callback without an amount, another amount under a known id, a configuration that is refused. After that

- each expression must parse, and each metric with each of its label values that it names must exist,
- exactly the rules that tell of these faults have a result, and what they say to people is whole,
- each panel shows something, but for those that are listed here with the reason,
- promtool has nothing to say about the metrics,
- each command of chaski's that the runbook, the rules and the panels name is one that the binary takes.
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/chaski.rules.yml"
BOARDS = ROOT / "deploy/grafana/dashboards"
SECONDS_MAX = 120

# What only Kafka and Redis have.
KAFKA_ONLY = (
    "chaski_spool_mode", "chaski_kafka_brokers_up", "chaski_kafka_produce_", "chaski_kafka_rebalances_", "chaski_dedup_degraded",
    "chaski_events_lost_to_retention_", "chaski_dedup_used_bytes", "chaski_dedup_capacity_bytes",
)

# The rules that these faults must raise, and no other.
RAISED = {
    "ChaskiCallbackFailing", "ChaskiDedupConflict", "ChaskiDestinationDisabled", "ChaskiDestinationDown", "ChaskiDlqGrowth",
    "ChaskiQuarantine", "ChaskiReloadFailed", "ChaskiSignatureAnomaly",
}

# A busy machine may raise these.
SLOW = {"ChaskiAckSlow", "ChaskiFsyncSlow"}

# Panels without data, and why.
EMPTY = {
    "Spool: age of the oldest event": "Kafka is well: nothing waits in the spool",
    "Certificates: time left": "no TLS at the edge, and no connection to the destination that has it",
}
EMPTY_EMBEDDED = EMPTY | {
    "In the spool": "Kafka only", "Records handed to Kafka": "Kafka only", "Kafka's acknowledgement": "Kafka only",
    "Brokers connected": "Kafka only", "Spool: who has the word": "Kafka only", "Without Redis": "Kafka only",
    "Redis: memory": "Kafka only",
    "Deleted before they were settled, in an hour": "Kafka only", "Partitions shared out anew in 15 minutes": "Kafka only",
}
EMPTY_KAFKA = EMPTY | {
    "Local store: one commit, p99": "Kafka is well: nothing is written to the spool",
    "Local store: writes in a commit, median": "Kafka is well: nothing is written to the spool",
}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Does what the first part of the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        what = self.path.strip("/")
        if what == "hang" and self.server.is_sick.is_set():
            time.sleep(1.5)
        status = {"fail": 500, "gone": 410}.get(what, 200) if self.server.is_sick.is_set() else 200
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, *_):
        pass


class Receivers(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, found, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if found():
                return
        time.sleep(0.1)
    raise SystemExit(f"not within {seconds} s: {what}")


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


class Rig:
    """A folder, and the processes that were started for it; they end with it."""

    def __init__(self, stack, binary):
        self.binary = binary
        self.stack = stack
        self.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaski-expressions-")))
        # Whoever keeps the clock of this machine, it is kept there.
        programs = self.folder / "programs"
        programs.mkdir()
        chronyc = programs / "chronyc"
        chronyc.write_text("#!/bin/sh\necho A9FEA97B,10.0.0.1,4,1.5,0.001,0.1,0.2,-3.1,0.0,0.02,0.0003,0.0004,16.2,Normal\n", encoding="utf-8")
        chronyc.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PE_SECRET": "a-secret-of-this-test-alone", "PE_OLD": "the-secret-of-the-year-before",
        }
        stripe = self.folder / "st-secret"
        stripe.touch(0o600)
        stripe.write_text("another-secret-of-this-test", encoding="utf-8")
        self.receivers = Receivers(("127.0.0.1", 0), Receiver)
        self.receivers.is_sick = threading.Event()
        threading.Thread(target=self.receivers.serve_forever, daemon=True).start()
        stack.callback(self.receivers.shutdown)

    def start(self, name, *command):
        log = self.stack.enter_context(open(self.folder / f"{name}.log", "wb"))
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=self.folder, env=self.environment)

        def end():
            process.kill()
            process.wait()

        self.stack.callback(end)
        return process

    def chaski(self, *arguments, ok=True):
        done = subprocess.run([self.binary, *map(str, arguments)], cwd=self.folder, env=self.environment, text=True,
                              capture_output=True, timeout=60, check=False)
        if ok and done.returncode:
            raise SystemExit(f"chaski {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


class Installation:
    def __init__(self, rig, name, storage):
        self.rig = rig
        self.name = name
        self.edge, self.admin = free_port(), free_port()
        self.file = rig.folder / f"{name}.toml"
        receiver = f"http://127.0.0.1:{rig.receivers.server_address[1]}"
        self.text = f"""
[ingest]
listen = "127.0.0.1:{self.edge}"
[admin]
listen = "127.0.0.1:{self.admin}"
{storage}
[sources.pagoefectivo]
provider = "pagoefectivo"
secrets = ["env:PE_SECRET", "env:PE_OLD"]
[sources.stripe]
provider = "stripe"
secrets = ["file:st-secret"]
[destinations.orders]
url = "{receiver}/take"
[destinations.erp]
url = "{receiver}/fail"
[destinations.notifications]
url = "{receiver}/hang"
timeout = "1s"
[destinations.old]
url = "{receiver}/gone"
sources = ["stripe"]
[destinations.secure]
url = "https://127.0.0.1:1/take"
events = ["nothing"]
"""
        self.file.write_text(self.text, encoding="utf-8")

    def run(self):
        self.process = self.rig.start(self.name, self.rig.binary, "run", "-c", self.file)

        def is_ready():
            if self.process.poll() is not None:
                raise SystemExit((self.rig.folder / f"{self.name}.log").read_text(encoding="utf-8"))
            return get(f"http://127.0.0.1:{self.admin}/readyz")

        until(f"{self.name} is ready", is_ready, 60)

    def send(self, source, *arguments, ok=True):
        return self.rig.chaski("send", source, "-c", self.file, *arguments, ok=ok)

    def pay(self, number, amount="12.50", paid=True):
        data = {"cip": f"4000{number}", "currency": "PEN"}
        if amount:
            data["amount"] = amount
        if paid:
            data["paymentDate"] = time.strftime("%Y-%m-%dT%H:%M:%S-05:00", time.gmtime(time.time() - 5 * 3600 - 3))
        body = self.rig.folder / f"{self.name}-body.json"
        event = {"eventType": "cip.paid", "operationNumber": str(number), "data": data}
        body.write_text(json.dumps(event), encoding="utf-8")
        return self.send("pagoefectivo", "--body", body)

    def well(self):
        self.send("pagoefectivo", "--count", 10)
        self.send("stripe", "--count", 3)
        for number in range(2):
            self.pay(number)

    def sick(self):
        self.send("pagoefectivo", "--forge", "--count", 40, ok=False)
        self.send("pagoefectivo", "--count", 15)
        self.send("stripe", "--count", 3)
        self.pay(10)
        self.pay(10)
        if "quarantined" not in self.pay(10, "99.00") + self.pay(11, None):
            raise SystemExit("a conflict and a callback without an amount must be quarantined")
        swapped = self.rig.folder / f"{self.name}-swapped.toml"
        swapped.write_text(self.text.replace('"env:PE_SECRET", "env:PE_OLD"', '"env:PE_OLD"'), encoding="utf-8")
        self.rig.chaski("send", "pagoefectivo", "-c", swapped)
        self.rig.chaski("replay", "-c", self.file, "--destination", "orders", "--from", "1h", "--to", "0s", "--yes")
        with contextlib.suppress(urllib.error.HTTPError):
            get(f"http://127.0.0.1:{self.edge}/in/nobody")
        with socket.create_connection(("127.0.0.1", self.edge)) as garbage:
            garbage.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
            garbage.recv(1024)
        self.file.write_text(self.text + "[nonsense]\n", encoding="utf-8")
        self.process.send_signal(signal.SIGHUP)

    def metrics(self):
        return get(f"http://127.0.0.1:{self.admin}/metrics")


def kafka(rig):
    """A broker, and Redis; the storage section that names them."""
    redis = free_port()
    rig.start("redis", "redis-server", "--port", redis, "--bind", "127.0.0.1", "--save", "")
    brokers = os.environ.get("CHASKI_TEST_KAFKA")
    if not brokers:
        client, controller = free_port(), free_port()
        brokers = f"127.0.0.1:{client}"
        version = re.search(r"<version>(.*?)</version>", (ROOT / "tests/kafka/pom.xml").read_text(encoding="utf-8"))[1]
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        home = os.environ.get("KAFKA_HOME") or f"{cache}/chaski/kafka-{version}"
        properties = rig.folder / "server.properties"
        properties.write_text(f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={rig.folder}/kafka
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
""", encoding="utf-8")
        java = ["java", "-Xmx384m", "-cp", f"{home}/libs/*"]
        subprocess.run([*java, "kafka.tools.StorageTool", "format", "-t", "Y2hhc2tpLXRlc3RzLWthZg", "-c", properties],
                       check=True, capture_output=True)
        rig.start("kafka", *java, "kafka.Kafka", properties)
    listed = ", ".join(f'"{broker}"' for broker in brokers.split(","))
    return f"""[storage]
kind = "kafka"
brokers = [{listed}]
topic_prefix = "expressions-{os.getpid()}"
partitions = 3
replication = 1
path = "spool"
[storage.dedup]
redis = "redis://127.0.0.1:{redis}/0"
"""


class Prometheus:
    def __init__(self, rig, installations):
        self.port = free_port()
        targets = "".join(
            f"      - targets: ['127.0.0.1:{each.admin}']\n        labels: {{installation: {each.name}}}\n" for each in installations)
        (rig.folder / "prometheus.yml").write_text(f"""global:
  scrape_interval: 3s
  scrape_timeout: 3s
  evaluation_interval: 1s
rule_files: ['{RULES}']
scrape_configs:
  - job_name: chaski
    static_configs:
{targets}""", encoding="utf-8")
        rig.start("prometheus", "prometheus", f"--config.file={rig.folder}/prometheus.yml", f"--storage.tsdb.path={rig.folder}/tsdb",
                  f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn")
        until("Prometheus is ready", lambda: get(f"http://127.0.0.1:{self.port}/-/ready"))

    def api(self, path, **arguments):
        try:
            return json.loads(get(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"))["data"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{arguments}: {json.loads(error.read())['error']}") from None

    def ask(self, expression):
        """The series of an answer that say something; NaN does not."""
        return [each for each in self.api("query", query=expression)["result"] if each["value"][1] != "NaN"]

    def scraped(self, more):
        """Waits until each installation was scraped so many times more."""
        def counts():
            return [int(each["value"][1]) for each in self.ask("count_over_time(chaski_build_info[1h])")]
        wanted = [count + more for count in counts()] or [more, more]
        until("each is scraped", lambda: len(counts()) == 2 and all(a >= b for a, b in zip(counts(), wanted)))


SELECTOR = re.compile(r"((?:chaski|process|scrape)_[a-z0-9_]+|up\b)(\{[^}]*\})?")


def selectors(expression):
    return {name + (labels or "") for name, labels in SELECTOR.findall(expression)}


def of(expression, installation):
    """The expression, asked of one installation."""
    expression = expression.replace("$__rate_interval", "1m").replace('job=~"$job"', f'installation="{installation}"')
    if "$" in expression:
        raise SystemExit(f"a variable that is not known here: {expression}")
    return expression


def narrowed(selector, installation):
    name, _, labels = selector.rstrip("}").partition("{")
    labels = labels.replace('job=~"$job"', "").strip(",")
    return f'{name}{{{labels}{"," if labels else ""}installation="{installation}"}}'


def panels():
    for path in sorted(BOARDS.glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                yield path.stem, panel["title"], target["expr"]


def rules(prometheus):
    return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]


def check(prometheus, installations):
    """What is wrong, a line each."""
    for rule in rules(prometheus):
        if rule["health"] != "ok":
            yield f"rule {rule['name']}: {rule['health']}: {rule.get('lastError')}"
    for each in installations:
        name = each.name
        asked = {(rule["name"], one) for rule in rules(prometheus) for one in selectors(rule["query"])}
        asked |= {(f"{board}: {title}", one) for board, title, expression in panels() for one in selectors(expression)}
        for where, selector in sorted(asked):
            is_there = bool(prometheus.api("query", query=narrowed(selector, name))["result"])
            should = name == "kafka" or not selector.startswith(KAFKA_ONLY)
            if is_there != should:
                yield f"{name}: {where}: {selector} {'has no series' if should else 'is there, and was Kafka only'}"
        empty = EMPTY_KAFKA if name == "kafka" else EMPTY_EMBEDDED
        shown = {}
        for board, title, expression in panels():
            shown.setdefault((board, title), []).append(prometheus.ask(of(expression, name)))
        for (board, title), answers in shown.items():
            if any(answers) == (title in empty):
                yield f"{name}: {board}: {title!r} " + ("has data: take it off the list" if any(answers) else "has no data")
        raised = {rule["name"] for rule in rules(prometheus)
                  if rule["name"] not in SLOW and any(answer["metric"].get("installation") == name for answer in prometheus.ask(rule["query"]))}
        for alert in sorted(raised ^ RAISED):
            yield f"{name}: {alert} {'has a result' if alert in raised else 'has none'}"
        lint = subprocess.run(["promtool", "check", "metrics"], input=each.metrics(), text=True, capture_output=True, check=False)
        for line in (lint.stdout + lint.stderr).splitlines():
            yield f"{name}: promtool check metrics: {line}"
    for alert in prometheus.api("alerts")["alerts"]:
        for part, text in alert["annotations"].items():
            if not text or re.search(r"<no value>|<error|%!|  |: :|^ ", text):
                yield f"{alert['labels']['alertname']}: {part} is not whole: {text!r}"


COMMAND = re.compile(r"(?:^[$#] |`)(chaski [^`#\n]+)", re.M)


def commands(rig):
    """Each command that a text names must be one that the binary takes; a line each for those that are not."""
    texts = [ROOT / "README.md", *sorted((ROOT / "deploy").glob("*.md")), RULES, *sorted(BOARDS.glob("*.json"))]
    for path in texts:
        for command in COMMAND.findall(path.read_text(encoding="utf-8")):
            words = re.split(r" (?:\||&&|>) ", command)[0].split()[1:]
            words = ["0" * 32 if word == "ID" else word for word in words]
            if words[0] == "PID":
                continue
            done = subprocess.run([rig.binary, *words, "--help"], capture_output=True, text=True, check=False)
            if done.returncode:
                yield f"{path.relative_to(ROOT)}: {command}: {done.stderr.splitlines()[0]}"


def raised_while_well(prometheus):
    for rule in rules(prometheus):
        if rule["name"] not in SLOW:
            for answer in prometheus.ask(rule["query"]):
                yield f"all is well, and yet: {rule['name']}: {answer['metric']}"


def settled(found):
    """What is wrong and stays so; what is still on its way into the series is waited for."""
    end = time.monotonic() + 15
    while (wrong := list(found())) and time.monotonic() < end:
        time.sleep(1)
    return wrong


def main():
    binary = str(pathlib.Path(sys.argv[1]).resolve())
    for command in ("prometheus", "promtool", "redis-server", "java"):
        if not shutil.which(command):
            raise SystemExit(f"{command} is missing: run `make tools-test`")
    began = time.monotonic()
    alarm = threading.Timer(SECONDS_MAX, lambda: os.kill(os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    alarm.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"not within {SECONDS_MAX} s"))
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, binary)
        shared = kafka(rig)
        installations = [Installation(rig, "embedded", '[storage]\npath = "store"'), Installation(rig, "kafka", shared)]
        installations[0].run()
        until("Kafka answers, see kafka.log", lambda: "created" in rig.chaski("topics", "apply", "-c", installations[1].file, ok=False))
        installations[1].run()
        prometheus = Prometheus(rig, installations)
        prometheus.scraped(1)
        for each in installations:
            each.well()
        prometheus.scraped(2)
        wrong = list(commands(rig))
        wrong += settled(lambda: raised_while_well(prometheus))
        rig.receivers.is_sick.set()
        for each in installations:
            each.sick()
        prometheus.scraped(3)
        wrong += settled(lambda: check(prometheus, installations))
        if wrong and os.environ.get("CHASKI_KEEP"):
            shutil.copytree(rig.folder, os.environ["CHASKI_KEEP"], dirs_exist_ok=True)
        asked = len(rules(prometheus)), len(list(panels()))
    for line in wrong:
        print(line)
    print(f"{asked[0]} rules, {asked[1]} expressions of panels, embedded and on Kafka, in {time.monotonic() - began:.0f} s: "
          f"{len(wrong)} wrong", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What the files under deploy/ say of each other: every alert has a test that it fires and one that it is silent, and a section in
the runbook; the chart's copies are the originals; the dashboards are what their code makes. And that every test that SECURITY.md
names is there."""

import filecmp
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Where tests are.
ROOMS = ("common", "ingest", "dispatcher", "src", "tests/it")


def wrong():
    rules = (DEPLOY / "prometheus/chaski.rules.yml").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (DEPLOY / "prometheus/tests").glob("*.yml"))
    sections = re.findall(r"^### (Chaski\w+)$", (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8"), re.M)
    alerts = re.findall(r"- alert: (\w+)", rules)
    for alert in alerts:
        case = re.escape(f'expr: ALERTS{{alertname="{alert}",alertstate="firing"}}') + r"\n +eval_time: \w+\n +exp_samples:"
        for what, pattern in (("firing", case + r"\n"), ("silent", case + r" \[\]")):
            if not re.search(pattern, tests):
                yield f"{alert} has no {what} test"
        if f"RUNBOOK.md#{alert.lower()}\n" not in rules:
            yield f"{alert} has no runbook_url"
    for alert in set(alerts) ^ set(sections):
        yield f"{alert} is not in both, the rules and the runbook"
    for original, copy in (("prometheus/chaski.rules.yml", "chaski.rules.yml"),):
        there = DEPLOY / "helm/chaski/files" / copy
        if not there.exists() or not filecmp.cmp(DEPLOY / original, there, shallow=False):
            yield f"{there.relative_to(DEPLOY.parent)} is not {original}: copy it"
    code = "".join(path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.rs"))
    rows = re.findall(r"^\|.*\|(.*)\|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M)
    for row in rows[2:]:
        tests = re.findall(r"`(\w+)`", row)
        if not tests:
            yield f"SECURITY.md: no test in {row}"
        for test in tests:
            if not re.search(rf"fn {test}\(", code):
                yield f"SECURITY.md names {test}, and there is no such test"
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, DEPLOY / "grafana/dashboards.py", made], check=True)
        kept = DEPLOY / "grafana/dashboards"
        names = {path.name for folder in (pathlib.Path(made), kept) for path in folder.iterdir()}
        _, differ, missing = filecmp.cmpfiles(made, kept, names, shallow=False)
        for name in differ + missing:
            yield f"deploy/grafana/dashboards/{name} is not what dashboards.py makes"


found = list(wrong())
print("\n".join(found), end="\n" if found else "")
sys.exit(1 if found else 0)

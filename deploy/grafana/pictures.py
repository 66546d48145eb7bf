#!/usr/bin/env python3
"""The dashboards as pictures: `pictures.py BINARY FOLDER` writes one SVG each.

What they show has happened: the binary runs on Kafka and Redis under traffic, receivers fail and come back, Kafka stands still
for a while, and a real Prometheus that watches it is asked what Grafana would ask. It takes three minutes.
"""

import contextlib
import html
import http.server
import json
import math
import pathlib
import signal
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/deploy"))
import expressions as rig  # noqa: E402

SECONDS = 170
STEP = 2
WINDOW = "15s"

# The grid of Grafana has 24 columns.
COLUMN, ROW, GAP, HEAD = 40, 26, 4, 58
COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16"]
THRESHOLDS = {"green": "#1a9e5c", "yellow": "#c98500", "red": "#e0383e"}
STYLE = """<style>
text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#59636e}
.page{fill:#fff}.card{fill:#f6f8fa;stroke:#d0d7de}.title{fill:#1f2328}.grid{stroke:#d0d7de}.mark{stroke:#8c959f;stroke-dasharray:2 3}
path{fill:none;stroke-width:1.5}path.area{stroke:none;opacity:.45}
@media (prefers-color-scheme:dark){text{fill:#9198a1}.page{fill:#0d1117}.card{fill:#151b23;stroke:#3d444d}.title{fill:#f0f6fc}.grid{stroke:#3d444d}}
</style>"""


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers what `server.answers` has for its path, 200 otherwise."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        with contextlib.suppress(OSError):
            self.send_response(self.server.answers.get(self.path.strip("/"), 200))
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, *_):
        pass


class Rig(rig.Rig):
    """A rig that knows its processes by name, with receivers that can be told what to answer."""

    def __init__(self, stack, binary):
        self.processes = {}
        super().__init__(stack, binary)
        self.receivers.RequestHandlerClass = Receiver
        self.receivers.answers = {}

    def start(self, name, *command):
        self.processes[name] = super().start(name, *command)
        return self.processes[name]


class Prometheus(rig.Prometheus):
    """What Grafana would ask for a graph."""

    def ask_range(self, expression, begin, end):
        expression = expression.replace("$__rate_interval", WINDOW).replace("$job", ".+")
        told = self.api("query_range", query=expression, start=begin, end=end, step=STEP)["result"]
        return [(each["metric"], [(at - begin, float(value)) for at, value in each["values"] if value != "NaN"]) for each in told]


def story(installation):
    """What happens, when, and what to call it; nothing is said of what only prepares something."""
    answers, kafka = installation.rig.receivers.answers, installation.rig.processes["kafka"]

    def odd():
        installation.pay(900)
        installation.pay(900, "99.00")
        installation.pay(901, None)
        installation.send("pagoefectivo", "--forge", "--count", 60, ok=False)

    return [
        (25, "erp answers 503", lambda: answers.update(fail=503)),
        (45, "a conflict, a callback without an amount, forgeries", odd),
        (60, "notifications refuses what it is sent", lambda: answers.update(hang=422)),
        (75, "notifications is well again", lambda: answers.pop("hang")),
        (85, "erp is well again", lambda: answers.pop("fail")),
        (110, "Kafka stands still", lambda: kafka.send_signal(signal.SIGSTOP)),
        (135, "Kafka is back", lambda: kafka.send_signal(signal.SIGCONT)),
    ]


def record(binary):
    """The marks, and each board with the answers to its queries."""
    with contextlib.ExitStack() as stack:
        stage = Rig(stack, binary)
        shared = rig.kafka(stage)
        installation = rig.Installation(stage, "shop", shared)
        rig.until("Kafka answers", lambda: "created" in stage.chaski("topics", "apply", "-c", installation.file, ok=False), 60)
        installation.run()
        prometheus = Prometheus(stage, [installation])
        begin = time.time()
        for source, a_second in (("pagoefectivo", 12), ("stripe", 4)):
            stage.start(source, binary, "send", source, "-c", installation.file, "--count", SECONDS * a_second, "--rate", a_second)
        threading.Thread(target=pay, args=(installation, begin + SECONDS), daemon=True).start()
        marks = []
        for at, name, act in story(installation):
            time.sleep(max(0.0, begin + at - time.time()))
            print(f"{at:4} s  {name}", file=sys.stderr)
            marks.append((time.time() - begin, name))
            act()
        time.sleep(max(0.0, begin + SECONDS - time.time()))
        boards = {}
        for path in sorted(rig.BOARDS.glob("*.json")):
            board = json.loads(path.read_text(encoding="utf-8"))
            for panel in board["panels"]:
                panel["answers"] = [
                    (legend(target["legendFormat"], labels, installation), values)
                    for target in panel["targets"]
                    for labels, values in prometheus.ask_range(target["expr"], begin, begin + SECONDS)]
            boards[path.stem] = board
    return marks, boards


def pay(installation, until):
    """Payments with the time of the provider, which made-up callbacks do not have."""
    number = 1
    while time.time() < until:
        with contextlib.suppress(SystemExit):
            installation.pay(number)
        number += 1
        time.sleep(1)


def legend(template, labels, installation):
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template.replace(f"127.0.0.1:{installation.admin}", "shop-1")


def spelled(value, unit):
    """A value as a person reads it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0"
    suffix = {"reqps": "/s", "cps": "/s", "bytes": "B"}.get(unit, "")
    for size, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")) if unit == "bytes" else ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (size if name != 'k' else 1e3):.3g} {name}{suffix}"
    return f"{value:.3g}{' ' if unit == 'bytes' else ''}{suffix}" if value % 1 else f"{value:.0f}{' ' if unit == 'bytes' else ''}{suffix}"


def ceiling(value, unit=None):
    """The next round number."""
    if value <= 0:
        return 1.0
    if unit == "s" and value > 60:
        return 60 * ceiling(value / 60)
    if unit == "bytes" and value > 1024:
        return 1024 * ceiling(value / 1024, unit)
    size = 10.0 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * size >= value * 0.999)


def text(x, y, words, more=""):
    return f'<text x="{x:g}" y="{y:g}"{more}>{html.escape(words)}</text>'


def line(points):
    """A path through points; a new piece where a value is missing, and no point in the middle of a straight stretch."""
    path, last = [], None
    for place, (at, x, y) in enumerate(points):
        begins = last is None or at - last > 2.5 * STEP
        ahead = points[place + 1] if place + 1 < len(points) else None
        behind = points[place - 1][2] if place else None
        if begins or not ahead or not behind == y == ahead[2] or ahead[0] - at > 2.5 * STEP:
            path.append(f"{'M' if begins else 'L'}{x:.0f} {y:.1f}")
        last = at
    return "".join(path)


def pieces(points, below):
    """Stretches without a missing value, with what is beneath them."""
    begin = 0
    for end in range(1, len(points) + 1):
        if end == len(points) or points[end][0] - points[end - 1][0] > 2.5 * STEP:
            yield points[begin:end], below[begin:end]
            begin = end


def stat(panel, x, y, width, height):
    defaults = panel["fieldConfig"]["defaults"]
    values = panel["answers"][0][1] if panel["answers"] else []
    last = values[-1][1] if values and SECONDS - values[-1][0] < 2.5 * STEP else None
    steps = defaults["thresholds"]["steps"]
    reached = [step["color"] for step in steps if step["value"] is None or (last or 0) >= step["value"]]
    colour = THRESHOLDS[reached[-1]]
    if values:
        top = ceiling(max(value for _, value in values))
        scaled = [(at, x + at / SECONDS * width, y + height - 4 - value / top * height * 0.4) for at, value in values]
        yield f'<path d="{line(scaled)}" stroke="{colour}" opacity=".55"/>'
    shown = spelled(last, defaults.get("unit")) if last is not None else defaults.get("noValue", "0")
    yield text(x + width / 2, y + height * 0.58, shown, f' text-anchor="middle" style="font-size:30px;fill:{colour}"')


def graph(panel, marks, x, y, width, height):
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults.get("custom", {}), defaults.get("unit")
    answers = sorted((each for each in panel["answers"] if each[1]), key=lambda each: each[0])
    left, right, top, bottom = x + 54, x + width - 12, y + 30, y + height - 40
    if not answers:
        yield text((left + right) / 2, (top + bottom) / 2, "nothing to show", ' text-anchor="middle"')
        return
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    beneath, layers = {}, []
    for name, values in answers:
        if stacked:
            below = [(at, beneath.get(round(at), 0.0)) for at, _ in values]
            values = [(at, value + under) for (at, value), (_, under) in zip(values, below)]
            beneath |= {round(at): value for at, value in values}
        else:
            below = []
        layers.append((name, values, below))
    every = [value for _, values, _ in layers for _, value in values]
    low = 0.0 if defaults.get("min") == 0 or min(every) >= 0 else -ceiling(-min(every))
    high = ceiling(max(every), unit) if max(every) > 0 else 0.0 if low else 1.0

    def place(values):
        return [(at, left + at / SECONDS * (right - left), bottom - (max(value, low) - low) / (high - low) * (bottom - top))
                for at, value in values]

    for share in (0, 0.5, 1):
        level = bottom - share * (bottom - top)
        yield f'<path class="grid" d="M{left} {level:.1f}H{right}" style="stroke-width:1"/>'
        yield text(left - 6, level + 4, spelled(low + share * (high - low), unit), ' text-anchor="end"')
    for number, (at, _) in enumerate(marks, 1):
        where = left + at / SECONDS * (right - left)
        yield f'<path class="mark" d="M{where:.0f} {top}V{bottom}" style="stroke-width:1"/>'
        yield text(where + 2, top + 8, str(number), ' style="font-size:9px"')
    for index, (name, values, below) in enumerate(layers):
        colour, drawn = COLOURS[index % len(COLOURS)], line(place(values))
        if stacked:
            for piece, beneath_it in pieces(place(values), place(below)):
                back = "".join(f"L{across:.0f} {level:.1f}" for _, across, level in reversed(beneath_it))
                yield f'<path class="area" style="fill:{colour}" d="{line(piece)}{back}Z"/>'
        yield f'<path d="{drawn}" stroke="{colour}"/>'
    at, row = left - 40, 0
    for index, (name, _, _) in enumerate(layers):
        room = 18 + 6.3 * len(name)
        if at + room > right and row:
            yield text(at, bottom + 32, "…")
            break
        if at + room > right:
            at, row = left - 40, row + 1
        yield f'<circle cx="{at + 4:g}" cy="{bottom + 14 + 14 * row:g}" r="3.5" fill="{COLOURS[index % len(COLOURS)]}"/>'
        yield text(at + 11, bottom + 18 + 14 * row, name or "value")
        at += room


def picture(board, marks):
    """A whole dashboard."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = 24 * COLUMN + GAP, HEAD + rows * ROW + GAP
    title = f"chaski: {board['title']}"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
    yield STYLE
    yield f'<rect class="page" width="{width}" height="{height}"/>'
    yield text(10, 20, f"{board['title']}: {board['description']}", ' class="title" style="font-size:15px"')
    told = [f"{number} {name}" for number, (_, name) in enumerate(marks, 1)]
    yield text(10, 37, f"{SECONDS} seconds under traffic: " + " · ".join(told[:3]))
    yield text(10, 52, " · ".join(told[3:]))
    for panel in board["panels"]:
        grid = panel["gridPos"]
        x, y = grid["x"] * COLUMN + GAP, HEAD + grid["y"] * ROW
        w, h = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
        yield f'<rect class="card" x="{x}" y="{y}" width="{w}" height="{h}" rx="4"/>'
        yield text(x + 10, y + 18, panel["title"], ' class="title"')
        yield from stat(panel, x, y, w, h) if panel["type"] == "stat" else graph(panel, marks, x, y, w, h)
    yield "</svg>\n"


def main():
    binary, folder = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
    marks, boards = record(binary)
    for name, board in boards.items():
        (folder / f"{name}.svg").write_text("\n".join(picture(board, marks)), encoding="utf-8")


if __name__ == "__main__":
    main()

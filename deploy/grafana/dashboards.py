"""The dashboards, as code: `dashboards.py FOLDER` writes one JSON file each.

On Kafka each dispatcher tells the whole lag of a destination and the whole of its dead letters, but only its own parked
deliveries: hence max for the former and sum for the latter. What the embedded store keeps is history, not a spool: what waits
in a spool is asked for with `chaski_spool_mode`, which only a process with a spool has.
"""

import pathlib
import sys

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode, LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync, DashboardLinkType, DataSourceRef, Threshold, ThresholdsMode, VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# Where Kafka does not answer its numbers are missing: the last known ones stand in, so that no sum shrinks by an outage.
LAG = 'max by (job, destination) (last_over_time(chaski_kafka_consumer_lag_records{job=~"$job",topic_kind="events"}[1h]))'
PARKED = 'sum by (job, destination) (chaski_dispatch_pending_events{job=~"$job",state="parked"})'
DEAD = 'max by (job, destination) (last_over_time(chaski_dlq_events{job=~"$job"}[1h]))'
QUARANTINED = 'max by (job, source) (last_over_time(chaski_quarantine_events{job=~"$job"}[1h]))'
SPOOLED = 'sum(chaski_spool_records{job=~"$job"} and chaski_spool_mode)'


def rate(metric, by, labels="", window="$__rate_interval"):
    """Events a second, by some labels."""
    labels = f",{labels}" if labels else ""
    return f'sum by ({by}) (rate({metric}{{job=~"$job"{labels}}}[{window}]))'


def quantile(share, metric, by):
    """A quantile of a histogram, by some labels."""
    return f"histogram_quantile({share}, {rate(metric + '_bucket', 'le, ' + by)})"


def age(metric, by):
    """Seconds since the oldest; nothing where there is none."""
    return f'time() - (max by ({by}) ({metric}{{job=~"$job"}}) > 0)'


def query(expr, legend="", instant=False, ref="A"):
    made = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(SOURCE)
    return made.instant() if instant else made.range()


def steps(*pairs):
    """Colours from a value on; the first has none."""
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(
        [Threshold(value=value, color=color) for value, color in pairs])


BAD_ABOVE_ZERO = steps((None, "green"), (1, "red"))


def number(title, expr, why, unit="short", thresholds=BAD_ABOVE_ZERO, height=4, span=4, legend="", empty="0"):
    return (stat.Panel().title(title).description(why).datasource(SOURCE).with_target(query(expr, legend))
            .unit(unit).thresholds(thresholds).graph_mode(BigValueGraphMode.AREA).no_value(empty)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .height(height).span(span))


def graph(title, why, *queries, unit="short", stacked=False, span=12, height=8, floor=0):
    panel = (timeseries.Panel().title(title).description(why).datasource(SOURCE).unit(unit)
             .height(height).span(span).fill_opacity(30 if stacked else 8).line_width(1)
             .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST)
                     .placement(LegendPlacement.BOTTOM).show_legend(True))
             .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)))
    if floor is not None:
        panel = panel.min(floor)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for place, (expr, legend) in enumerate(queries):
        panel = panel.with_target(query(expr, legend, ref=chr(ord("A") + place)))
    return panel


def board(uid, title, why, *panels):
    made = (dashboard.Dashboard(title).uid(uid).description(why).tags(["chaski"]).readonly()
            .tooltip(DashboardCursorSync.CROSSHAIR).refresh("30s").time("now-6h", "now").timezone("browser")
            .link(dashboard.DashboardLink("chaski").type(DashboardLinkType.DASHBOARDS).tags(["chaski"])
                  .as_dropdown(False).include_vars(True).keep_time(True))
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
            .with_variable(dashboard.QueryVariable("job").label("installation").datasource(SOURCE)
                           .query("label_values(chaski_build_info, job)").refresh(VariableRefresh.ON_DASHBOARD_LOAD).include_all(True).multi(True)
                           .current({"text": ["All"], "value": ["$__all"]})))
    for panel in panels:
        made = made.with_panel(panel)
    return made


MONEY = board(
    "chaski-money", "1 Money at risk", "What was answered 200 and is not yet where it belongs.",
    number("Events answered 200 and not yet at every destination",
           f'(sum({LAG}) or vector(0)) + (sum({PARKED}) or vector(0)) + (sum({DEAD}) or vector(0))'
           f' + (sum({QUARANTINED}) or vector(0)) + ({SPOOLED} or vector(0))',
           "Backlog, parked, dead, quarantined and in the spool. An event that two destinations do not have counts twice: the "
           "number may be too high. While Kafka does not answer, its last word stands in for an hour; while no dispatcher runs, "
           "what is parked is missing. `chaski destinations` has it by destination.",
           height=6, span=12, thresholds=steps((None, "green"), (1, "yellow"), (100, "red"))),
    number("Oldest event not settled", f'max({age("chaski_kafka_oldest_unsettled_timestamp_seconds", "destination")})',
           "`chaski destinations`", unit="s", thresholds=steps((None, "green"), (300, "red")), span=4, height=6, empty="none"),
    number("Dead letters", f"sum({DEAD})", "Nothing happens to them until a person acts: `chaski dead`", span=4, height=6),
    number("Quarantined", f"sum({QUARANTINED})", "Signed and unusable: `chaski dead --quarantined`", span=4, height=6),
    number("Conflicts in a day", 'sum(increase(chaski_dedup_conflicts_total{job=~"$job"}[1d]))',
           "A known id with other content: `chaski dead --quarantined --reason dedup_conflict`", span=6),
    number("In the spool", SPOOLED, "Taken while Kafka was away, on the edges' disks.", span=6),
    number("Destinations with an open breaker", 'count(max by (destination) (chaski_dispatch_circuit_open{job=~"$job"}) == 1)',
           "`chaski destinations`", span=6),
    number("Callbacks in a row not answered 200", 'max(chaski_edge_consecutive_non_200{job=~"$job"})',
           "Genuine ones that could not be made durable.", span=6, thresholds=steps((None, "green"), (1, "yellow"), (5, "red"))),
    graph("Backlog by destination", "In the log and not settled: `chaski destinations`", (LAG, "{{destination}}")),
    graph("Parked by destination", "Waiting for a later attempt: `chaski parked --destination NAME`", (PARKED, "{{destination}}")),
    graph("Dead letters by destination", "`chaski dead --destination NAME`", (DEAD, "{{destination}}")),
    graph("Dead letters added in 15 minutes", "By reason: `chaski dead --reason REASON`",
          ('sum by (destination, reason) (increase(chaski_dlq_added_total{job=~"$job"}[15m])) > 0', "{{destination}} {{reason}}")),
    graph("Quarantined by source", "`chaski dead --quarantined`", (QUARANTINED, "{{source}}")),
    graph("Quarantined in 15 minutes", "By reason: `chaski dead --quarantined --reason REASON`",
          ('sum by (source, reason) (increase(chaski_quarantine_added_total{job=~"$job"}[15m])) > 0', "{{source}} {{reason}}")),
    graph("Deleted before they were settled, in an hour", "By the brokers, by destination. Anything but zero is lost payments.",
          ('sum by (destination) (increase(chaski_events_lost_to_retention_total{job=~"$job"}[1h]))', "{{destination}}"), span=24),
    graph("From payment to delivery, p95", "The provider's time of an event to the destination's 2xx.",
          (quantile(0.95, "chaski_dispatch_money_latency_seconds", "destination"), "{{destination}}"), unit="s"),
    graph("Since the last accepted callback", "By source. Long for a busy source: `chaski send SOURCE` shows whether the way is open.",
          (age("chaski_edge_last_accepted_timestamp_seconds", "source"), "{{source}}"), unit="s"),
)

EDGE = board(
    "chaski-edge", "2 Edge", "Socket to 200.",
    graph("Answers", "By outcome. unavailable is 503.", (rate("chaski_edge_requests_total", "outcome"), "{{outcome}}"), unit="reqps", stacked=True),
    graph("Accepted", "By source: `chaski events --source NAME`",
          (rate("chaski_edge_requests_total", "source", 'outcome="accepted"'), "{{source}}"), unit="reqps", stacked=True),
    graph("Refused", "By source and reason.", (rate("chaski_edge_refused_total", "source, reason") + " > 0", "{{source}} {{reason}}"), unit="reqps"),
    graph("Before a source is known", "Unknown paths, hosts; connections that end badly.",
          (rate("chaski_edge_unrouted_total", "reason"), "{{reason}}"),
          (rate("chaski_edge_connection_errors_total", "reason") + " > 0", "{{reason}}"), unit="reqps"),
    graph("Time to answer", "p50 and p99 by source.",
          (quantile(0.5, "chaski_edge_request_duration_seconds", "source"), "p50 {{source}}"),
          (quantile(0.99, "chaski_edge_request_duration_seconds", "source"), "p99 {{source}}"), unit="s"),
    graph("Time to durable", "p50 and p99 by where: spool is the disk, kafka all in-sync replicas.",
          (quantile(0.5, "chaski_edge_durable_ack_seconds", "path"), "p50 {{path}}"),
          (quantile(0.99, "chaski_edge_durable_ack_seconds", "path"), "p99 {{path}}"), unit="s"),
    graph("Share of the bounds", "At 100 % new connections wait and requests get 503.",
          ('sum by (instance) (chaski_edge_connections_open{job=~"$job"}) / on (instance) chaski_edge_capacity{job=~"$job",resource="connections"}', "connections {{instance}}"),
          ('chaski_edge_inflight_requests{job=~"$job"} / on (instance) chaski_edge_capacity{job=~"$job",resource="requests"}', "requests {{instance}}"),
          ('chaski_edge_inflight_bytes{job=~"$job"} / on (instance) chaski_edge_capacity{job=~"$job",resource="bytes"}', "bytes {{instance}}"), unit="percentunit"),
    graph("Connections", "Taken a second.", (rate("chaski_edge_connections_total", "listener"), "{{listener}}"), unit="cps"),
    graph("Which key signed", "previous at zero for days: the old secret can go.",
          (rate("chaski_edge_signature_verified_total", "source, key"), "{{source}} {{key}}"), unit="reqps"),
    graph("Which form of the body was signed", "minified: the sender signs without white space.",
          (rate("chaski_edge_signature_form_total", "source, form"), "{{source}} {{form}}"), unit="reqps"),
    graph("Clock skew, median", "Our clock minus the sender's, for senders that sign a time.",
          (quantile(0.5, "chaski_edge_timestamp_skew_seconds", "source"), "{{source}}"), unit="s", floor=None),
    graph("Body size, p95", "By source.", (quantile(0.95, "chaski_edge_body_bytes", "source"), "{{source}}"), unit="bytes"),
    graph("Accepted by type", "By source and event type: `chaski events --type TYPE`",
          (rate("chaski_edge_events_total", "source, event_type"), "{{source}} {{event_type}}"), unit="reqps", span=24),
)

DELIVERY = board(
    "chaski-delivery", "3 Delivery", "Stored to delivered, parked or dead.",
    graph("Success", "Share of attempts, by destination.",
          (rate("chaski_dispatch_attempts_total", "destination", 'result="success"')
           + " / " + rate("chaski_dispatch_attempts_total", "destination"), "{{destination}}"), unit="percentunit"),
    graph("Failures in a row", "Five page. `chaski destinations` says what it answered.",
          ('max by (destination) (chaski_dispatch_consecutive_failures{job=~"$job"})', "{{destination}}")),
    graph("Attempts", "By destination and result.",
          (rate("chaski_dispatch_attempts_total", "destination, result") + " > 0", "{{destination}} {{result}}"), unit="reqps", stacked=True),
    graph("One attempt", "p50 and p99 by destination.",
          (quantile(0.5, "chaski_dispatch_attempt_seconds", "destination"), "p50 {{destination}}"),
          (quantile(0.99, "chaski_dispatch_attempt_seconds", "destination"), "p99 {{destination}}"), unit="s"),
    graph("From the edge to the destination", "p50 and p99 by destination, repeats included.",
          (quantile(0.5, "chaski_dispatch_end_to_end_seconds", "destination"), "p50 {{destination}}"),
          (quantile(0.99, "chaski_dispatch_end_to_end_seconds", "destination"), "p99 {{destination}}"), unit="s"),
    graph("Under way", "By destination and state: `chaski parked --destination NAME`",
          ('sum by (destination, state) (chaski_dispatch_pending_events{job=~"$job"})', "{{destination}} {{state}}"), stacked=True),
    graph("Oldest unsettled", "`chaski destinations`",
          (age("chaski_kafka_oldest_unsettled_timestamp_seconds", "destination"), "{{destination}}"), unit="s"),
    graph("Breaker open, or gone", "1 while it is. gone: its last word was 410.",
          ('max by (destination) (chaski_dispatch_circuit_open{job=~"$job"})', "open {{destination}}"),
          ('max by (destination) (chaski_dispatch_disabled{job=~"$job"})', "gone {{destination}}")),
    graph("Replayed", "`chaski replay`, `chaski destinations --json`",
          (rate("chaski_replay_events_total", "destination, result"), "{{destination}} {{result}}"), unit="reqps"),
    graph("Headers left out", "Their value may not be sent.",
          (rate("chaski_dispatch_header_dropped_total", "destination"), "{{destination}}"), unit="reqps"),
    graph("Partitions shared out anew in 15 minutes", "By destination: a process came or went.",
          ('sum by (destination) (increase(chaski_kafka_rebalances_total{job=~"$job"}[15m]))', "{{destination}}"), span=24),
)

LOG = board(
    "chaski-log", "4 Log and cache", "Where events are kept, and how duplicates are known.",
    graph("Backlog", "Events past each destination's mark.", (LAG, "{{destination}}")),
    graph("Share of the retention behind the oldest unsettled", "80 % pages.",
          (f'({age("chaski_kafka_oldest_unsettled_timestamp_seconds", "destination")}) / ignoring (destination) group_left () '
           'max(chaski_log_retention_seconds{job=~"$job",topic_kind="events"})', "{{destination}}"), unit="percentunit"),
    graph("Records handed to Kafka", "By what became of them.", (rate("chaski_kafka_produce_total", "result"), "{{result}}"), unit="reqps"),
    graph("Kafka's acknowledgement", "p50 and p99.",
          (quantile(0.5, "chaski_kafka_produce_seconds", "job"), "p50"),
          (quantile(0.99, "chaski_kafka_produce_seconds", "job"), "p99"), unit="s"),
    graph("Brokers connected", "By process. 0 for a while is an idle connection that was closed.",
          ('chaski_kafka_brokers_up{job=~"$job"}', "{{instance}}")),
    graph("Spool: who has the word", "0: Kafka; 1: the spool, being drained; 2: the spool, Kafka is away.",
          ('chaski_spool_mode{job=~"$job"}', "{{instance}}")),
    graph("Local store: events", "Embedded: all that is kept. Kafka: what waits in the spool.",
          ('chaski_spool_records{job=~"$job"}', "{{instance}}")),
    graph("Local store: bytes", "On disk, log included.", ('chaski_spool_bytes{job=~"$job"}', "{{instance}}"), unit="bytes"),
    graph("Spool: age of the oldest event", "Ten minutes page.",
          ('time() - (chaski_spool_oldest_timestamp_seconds{job=~"$job"} > 0) and chaski_spool_mode', "{{instance}}"), unit="s"),
    graph("Local store: one commit, p99", "With its sync.",
          ('histogram_quantile(0.99, rate(chaski_spool_fsync_seconds_bucket{job=~"$job"}[$__rate_interval]))', "{{instance}}"), unit="s"),
    graph("Local store: writes in a commit, median", "More under load: that is group commit.",
          ('histogram_quantile(0.5, rate(chaski_spool_group_records_bucket{job=~"$job"}[$__rate_interval]))', "{{instance}}")),
    graph("Local store: failures", "By operation. Poisoned: a sync failed, only a restart helps.",
          (rate("chaski_spool_errors_total", "instance, op"), "{{instance}} {{op}}"),
          ('chaski_spool_poisoned{job=~"$job"}', "poisoned {{instance}}")),
    graph("Deduplication", "Decisions by result.", (rate("chaski_dedup_lookups_total", "backend, result"), "{{backend}} {{result}}"), unit="reqps"),
    graph("Deduplication: time", "p99 by backend.", (quantile(0.99, "chaski_dedup_duration_seconds", "backend"), "{{backend}}"), unit="s"),
    graph("Without Redis", "1 while an edge goes on without it.", ('chaski_dedup_degraded{job=~"$job"}', "{{instance}}")),
    graph("Redis: memory", "In use, and its bound if it has one: `chaski doctor`",
          ('max(chaski_dedup_used_bytes{job=~"$job"})', "in use"), ('max(chaski_dedup_capacity_bytes{job=~"$job"} > 0)', "maxmemory"), unit="bytes"),
)

HYGIENE = board(
    "chaski-hygiene", "5 Hygiene", "The processes.",
    graph("Watched", "1 while a process answers Prometheus.", ('up{job=~"$job"} and on (job) chaski_build_info', "{{instance}}")),
    graph("Scrape", "How long /metrics takes; on Kafka it asks the brokers.",
          ('scrape_duration_seconds{job=~"$job"} and on (job) chaski_build_info', "{{instance}}"), unit="s"),
    graph("Version", "By process.", ('count by (version) (chaski_build_info{job=~"$job"})', "{{version}}")),
    graph("Up since", "", ('time() - process_start_time_seconds{job=~"$job"}', "{{instance}}"), unit="s"),
    graph("Configuration on disk refused", "1 while the last reload was: `chaski check`",
          ('1 - chaski_config_last_reload_successful{job=~"$job"}', "{{instance}}")),
    graph("Since the configuration was taken into force", "",
          ('time() - chaski_config_last_reload_success_timestamp_seconds{job=~"$job"}', "{{instance}}"), unit="s"),
    graph("Certificates: time left", "Of the edge, and of destinations as deliveries saw them last. Two weeks raise an alert: `chaski doctor`",
          ('min by (listener) (chaski_tls_certificate_not_after_timestamp_seconds{job=~"$job"} > 0) - time()', "{{listener}}"),
          ('min by (destination) (chaski_destination_certificate_not_after_timestamp_seconds{job=~"$job"} > 0) - time()', "{{destination}}"),
          unit="s", floor=None),
    graph("Secrets: age", "Of those in use, where a file or `not_before` tells. Ninety days raise an alert: `chaski check`",
          ('time() - (min by (source, key) (chaski_secret_created_timestamp_seconds{job=~"$job",key!~"previous.*"}) > 0)', "{{source}} {{key}}"), unit="s"),
    graph("Clock", "How far it is off, where chrony or systemd tells; half a minute pages: `chaski doctor`",
          ('chaski_clock_offset_seconds{job=~"$job"}', "{{instance}}"), unit="s", floor=None),
    graph("Since old events were last deleted", "Where events are delivered. Two days raise an alert.",
          ('time() - (chaski_purge_last_success_timestamp_seconds{job=~"$job"} > 0)', "{{instance}}"), unit="s"),
    graph("CPU", "Cores.", ('rate(process_cpu_seconds_total{job=~"$job"}[$__rate_interval])', "{{instance}}")),
    graph("Memory", "Resident.", ('process_resident_memory_bytes{job=~"$job"}', "{{instance}}"), unit="bytes"),
    graph("File descriptors", "Share of what is allowed.",
          ('process_open_fds{job=~"$job"} / process_max_fds{job=~"$job"}', "{{instance}}"), unit="percentunit"),
    graph("Panics", "By task.", ('sum by (task) (increase(chaski_panics_total{job=~"$job"}[15m]))', "{{task}}")),
    graph("Series", "Bounded by sources and destinations.", ('scrape_samples_scraped{job=~"$job"} and on (job) chaski_build_info', "{{instance}}"), span=24),
)

BOARDS = {"money": MONEY, "edge": EDGE, "delivery": DELIVERY, "log": LOG, "hygiene": HYGIENE}


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, made in BOARDS.items():
        text = JSONEncoder(sort_keys=True, indent=2).encode(made.build())
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The table of the controller's metrics, and the Prometheus text of its /metrics. Pure rules.

To add a metric, add it to CONTROLLER_METRICS, and its samples to `fleet_samples` or to the controller's counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from edgekit.rollout.document import RolloutDocument
from edgekit.serving.http.metrics import Metric, escape_label
from edgekit.state.overview import Overview

DATABASE = "edgekit_controller_database"
MAX_ROLLOUTS = 10  # the newest ones have samples of their own, so that their number does not rise for ever

CONTROLLER_METRICS = (
    Metric("edgekit_fleet_devices", "gauge", "Enrolled devices by presence.", ("presence",)),
    Metric("edgekit_fleet_target_devices", "gauge", "Enrolled devices by target profile.", ("target",)),
    Metric("edgekit_fleet_model_devices", "gauge", "Devices that run a version of a model.", ("model", "version")),
    Metric(
        "edgekit_fleet_model_outcomes",
        "gauge",
        "Devices by how their last deployment of a model ended.",
        ("model", "result"),
    ),
    Metric("edgekit_fleet_model_updating", "gauge", "Devices that are updating a model.", ("model",)),
    Metric("edgekit_fleet_model_waiting", "gauge", "Devices that wait on purpose with a model.", ("model",)),
    Metric("edgekit_fleet_alarms_day", "gauge", "Events with an error in the last day.", ()),
    Metric("edgekit_fleet_drifting_devices", "gauge", "Devices with an open alarm of drift.", ()),
    Metric(
        "edgekit_rollout_devices",
        "gauge",
        "Devices of the newest rollouts by state.",
        ("rollout", "model", "version", "state"),
    ),
    Metric(
        "edgekit_rollout_state",
        "gauge",
        "1 for the present state of each of the newest rollouts.",
        ("rollout", "model", "version", "state"),
    ),
    Metric(DATABASE, "gauge", "1 while the database answers, else 0 and no values of the fleet.", ()),
    Metric("edgekit_controller_connected", "gauge", "1 while the broker is connected, else 0.", ()),
    Metric("edgekit_controller_leading", "gauge", "1 while this controller leads its fleet, 0 while it stands by.", ()),
    Metric("edgekit_controller_transfers", "gauge", "Transfers of blocks that are in progress.", ()),
    Metric("edgekit_controller_broadcasts_total", "counter", "Broadcasts that sent blocks.", ()),
    Metric("edgekit_controller_broadcast_blocks_total", "counter", "Blocks that were broadcast.", ()),
    Metric("edgekit_controller_webhook_deliveries_total", "counter", "Posts that receivers of webhooks accepted.", ()),
    Metric("edgekit_controller_webhook_failures_total", "counter", "Posts that they did not accept.", ()),
    Metric("edgekit_controller_tick_errors_total", "counter", "Parts of rounds that failed.", ()),
    Metric("edgekit_controller_dropped_messages_total", "counter", "Messages dropped because the inbox was full.", ()),
    Metric("edgekit_controller_failed_messages_total", "counter", "Messages that could not be handled.", ()),
    Metric("edgekit_controller_samples_stored_total", "counter", "Samples of devices that were stored.", ()),
    Metric("edgekit_controller_sample_bytes_stored_total", "counter", "Bytes of these samples.", ()),
    Metric("edgekit_controller_samples_refused_total", "counter", "Parts of samples that were refused.", ()),
    Metric("edgekit_controller_samples_full_total", "counter", "Samples that a device's quota had no room for.", ()),
    Metric("edgekit_controller_samples_expired_total", "counter", "Samples that were removed after sample_days.", ()),
)


class Sample(NamedTuple):
    """One value of a metric; `labels` are the values of its labels in order."""

    name: str
    labels: tuple[str, ...]
    value: float


def fleet_samples(overview: Overview, rollouts: Sequence[RolloutDocument]) -> list[Sample]:
    """The samples of a fleet.

    Args:
        overview: The fleet in numbers.
        rollouts: The newest rollouts.
    """
    offline = overview.devices - overview.online - overview.never_seen
    presence = {"online": overview.online, "offline": offline, "never_seen": overview.never_seen}
    samples = [Sample("edgekit_fleet_devices", (state,), count) for state, count in presence.items()]
    samples += [Sample("edgekit_fleet_target_devices", (target,), n) for target, n in overview.targets.items()]
    for one in overview.models:
        samples += [
            Sample("edgekit_fleet_model_devices", (one.model, each.version), each.devices) for each in one.versions
        ]
        samples += [Sample("edgekit_fleet_model_outcomes", (one.model, key), n) for key, n in one.outcomes.items()]
        samples.append(Sample("edgekit_fleet_model_updating", (one.model,), one.updating))
        samples.append(Sample("edgekit_fleet_model_waiting", (one.model,), one.waiting))
    samples.append(Sample("edgekit_fleet_alarms_day", (), overview.alarms))
    samples.append(Sample("edgekit_fleet_drifting_devices", (), overview.drifting))
    for rollout in rollouts[:MAX_ROLLOUTS]:
        labels = (str(rollout.id), rollout.model, rollout.version)
        samples += [
            Sample("edgekit_rollout_devices", (*labels, "ASSIGNED" if state == "TOLD" else state), count)
            for state, count in rollout.counts.items()
        ]
        samples.append(Sample("edgekit_rollout_state", (*labels, rollout.state), 1))
    return samples


def render_samples(metrics: Sequence[Metric], samples: Iterable[Sample]) -> bytes:
    """The Prometheus text of samples.

    Raises:
        LookupError: a sample is of no metric of the table.
    """
    by_name: dict[str, list[Sample]] = {metric.name: [] for metric in metrics}
    for sample in samples:
        by_name[sample.name].append(sample)
    lines = []
    for metric in metrics:
        if found := by_name[metric.name]:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [_line(metric, sample) for sample in found]
    return ("\n".join(lines) + "\n").encode()


def controller_samples(values: Mapping[str, float]) -> list[Sample]:
    """The samples of a controller's own values, by their names without ``edgekit_controller_``."""
    return [Sample(f"edgekit_controller_{name}", (), value) for name, value in values.items()]


def _line(metric: Metric, sample: Sample) -> str:
    pairs = ",".join(
        f'{name}="{escape_label(value)}"' for name, value in zip(metric.labels, sample.labels, strict=True)
    )
    return f"{metric.name}{{{pairs}}} {sample.value:.17g}" if pairs else f"{metric.name} {sample.value:.17g}"

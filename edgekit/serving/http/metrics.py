"""The table of all metrics, and the Prometheus text of /metrics.

To add a metric of a model, return it under its short name from the server's `counters()` or `gauges()`, and add it to
METRICS. A second label follows the short name: ``cloud_failures.timeout`` has the reason ``timeout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from edgekit.serving.session.latency import BOUNDS, Latency

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """One metric of /metrics.

    Attributes:
        name: As /metrics prints it.
        kind: Its Prometheus type.
        help: Its HELP text.
        labels: Names of its labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


def _of_model(kind: Literal["counter", "gauge"], short: str, text: str) -> Metric:
    ending = "_total" if kind == "counter" else ""
    return Metric(f"edgekit_model_{short}{ending}", kind, text, ("model",))


METRICS = (
    Metric("edgekit_http_responses_total", "counter", "HTTP responses by status code.", ("code",)),
    Metric("edgekit_grpc_responses_total", "counter", "gRPC calls by status.", ("code",)),
    Metric(
        "edgekit_key_requests_total",
        "counter",
        "Inference requests by the owner of the API key and the outcome: requests (let in), rate, quota or model (why "
        "one was refused).",
        ("key", "outcome"),
    ),
    _of_model("counter", "requests", "Inference requests."),
    _of_model("counter", "errors", "Requests that ended with an error."),
    _of_model("counter", "local", "Requests that the local model answered."),
    _of_model("counter", "cloud", "Requests that the cloud tier answered."),
    _of_model(
        "counter", "degraded", "Requests that the local model answered because the cloud tier gave no usable answer."
    ),
    _of_model(
        "counter",
        "cloud_errors",
        "Requests that needed the cloud tier and got no answer from it (failed, late, busy or switched off).",
    ),
    Metric(
        "edgekit_model_reasons_total",
        "counter",
        "Answers by the reason of their route, edgekit_reason (docs/serving.md has the reasons).",
        ("model", "reason"),
    ),
    Metric(
        "edgekit_model_cloud_failures_total",
        "counter",
        "Calls of the cloud tier that failed or were not made, by reason (docs/serving.md has the reasons).",
        ("model", "reason"),
    ),
    Metric(
        "edgekit_model_cloud_answers_total",
        "counter",
        "Usable answers of the cloud tier, by the endpoint that gave them.",
        ("model", "endpoint"),
    ),
    _of_model(
        "counter", "cloud_retries", "Calls of a further endpoint of the cloud tier after another one had failed."
    ),
    _of_model("counter", "certified", "Answers that carry a certificate, because it holds for them."),
    _of_model("counter", "explored", "Confident answers that were also sent to the cloud tier, to test a certificate."),
    _of_model("counter", "explored_differing", "Explored answers that differ from the certified cloud model's."),
    _of_model("counter", "runs", "Requests that the local model ran, failed ones included."),
    _of_model("counter", "run_us", "Time of successful local runs in microseconds, waiting in the queue included."),
    _of_model("counter", "runtime_errors", "Local runs that failed in the runtime."),
    _of_model("counter", "unusable", "Local runs whose outputs contain NaN although all inputs are finite."),
    Metric(
        "edgekit_model_unusable_answers_total",
        "counter",
        "Answers of the cloud tier that contain NaN although all inputs are finite, by model and version.",
        ("model", "version"),
    ),
    _of_model("counter", "shed", "Requests that were not run locally because the queue was full."),
    _of_model(
        "counter", "expired", "Requests that were not run locally because the deadline was too near or had passed."
    ),
    _of_model("counter", "swaps", "Activations of a bundle, the first one included."),
    _of_model("counter", "loads", "Times the model was loaded into memory."),
    _of_model("counter", "evictions", "Times the model was unloaded to make room for another model."),
    _of_model(
        "counter", "crashes", "Times the model's worker process crashed or was ended because a run took too long."
    ),
    _of_model("gauge", "memory_bytes", "Memory that the loaded model holds in bytes; 0 while it is unloaded."),
    _of_model("gauge", "waiting", "Requests that wait or run now."),
    _of_model("gauge", "loaded", "1 while the model is in memory, else 0."),
    _of_model("gauge", "streams", "Open streams of a model with state."),
    _of_model("gauge", "drifting", "Inputs and answers that differ from the calibration data (docs/drift.md)."),
    _of_model("gauge", "drift_samples", "Requests that the test of drift has counted for the active bundle."),
    Metric(
        "edgekit_model_latency_seconds",
        "histogram",
        "Time of answered requests from arrival to answer in the cloud tier, by model and version.",
        ("model", "version"),
    ),
    _of_model("gauge", "restarts", "Restarts of the model's worker process since the model was loaded."),
)

_LATENCY = "edgekit_model_latency_seconds"
_KEYS = "edgekit_key_requests_total"
_KNOWN = {metric.name for metric in METRICS}
_SECOND_LABELS = {metric.name: metric.labels[1] for metric in METRICS if len(metric.labels) > 1}


@runtime_checkable
class HasGauges(Protocol):
    """A model server that has gauges besides its counters."""

    def gauges(self) -> Mapping[str, Mapping[str, float]]:
        """Present values by model, then by short name."""
        ...


def gauges_of(server: object) -> Mapping[str, Mapping[str, float]]:
    """A server's gauges; empty where it has none."""
    return server.gauges() if isinstance(server, HasGauges) else {}


@runtime_checkable
class HasLatencies(Protocol):
    """A model server that measures how long its answers take."""

    def latencies(self) -> Mapping[tuple[str, str], Latency]:
        """Histograms by model and version."""
        ...


def latencies_of(server: object) -> Mapping[tuple[str, str], Latency]:
    """A server's histograms; empty where it has none."""
    return server.latencies() if isinstance(server, HasLatencies) else {}


def render(
    counters: Mapping[str, Mapping[str, float]],
    statuses: Mapping[int, int],
    grpc_codes: Mapping[str, int] | None = None,
    gauges: Mapping[str, Mapping[str, float]] | None = None,
    latencies: Mapping[tuple[str, str], Latency] | None = None,
    keys: Mapping[tuple[str, str], int] | None = None,
) -> bytes:
    """Render the text of /metrics.

    Args:
        counters: Rising values by model, then by short name (``requests`` for ``edgekit_model_requests_total``).
        statuses: HTTP responses by status.
        grpc_codes: gRPC calls by the name of their status; None where gRPC is not served.
        gauges: Present values by model, then by short name.
        latencies: Histograms by model and version.
        keys: Inference requests by the owner of the API key and the outcome.

    Raises:
        LookupError: a metric is not in METRICS.
    """
    samples = {"edgekit_http_responses_total": _by_code(statuses)}
    if grpc_codes is not None:
        samples["edgekit_grpc_responses_total"] = _by_code(grpc_codes)
    samples |= _by_model(counters, "_total") | _by_model(gauges or {}, "")
    if keys:
        samples[_KEYS] = [
            (f'key="{escape_label(name)}",outcome="{outcome}"', str(count))
            for (name, outcome), count in sorted(keys.items())
        ]
    unknown = samples.keys() - _KNOWN
    if unknown:
        raise LookupError(f"metrics {', '.join(sorted(unknown))} have no entry in METRICS; add one with a help text")
    lines = []
    for metric in METRICS:
        if metric.name in samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [f"{metric.name}{{{labels}}} {value}" for labels, value in samples[metric.name]]
        elif metric.name == _LATENCY and latencies:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += _histogram(latencies)
    return ("\n".join(lines) + "\n").encode()


def _histogram(latencies: Mapping[tuple[str, str], Latency]) -> list[str]:
    lines = []
    for (model, version), one in sorted(latencies.items()):
        labels, below = f'model="{escape_label(model)}",version="{escape_label(version)}"', 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), one.counts, strict=True):
            below += count
            lines.append(f'{_LATENCY}_bucket{{{labels},le="{bound}"}} {below}')
        lines.append(f"{_LATENCY}_sum{{{labels}}} {one.total_seconds:.17g}")
        lines.append(f"{_LATENCY}_count{{{labels}}} {below}")
    return lines


def _by_code(counts: Mapping[Any, int]) -> list[tuple[str, str]]:
    return [(f'code="{code}"', str(count)) for code, count in sorted(counts.items())]


def _by_model(values: Mapping[str, Mapping[str, float]], ending: str) -> dict[str, list[tuple[str, str]]]:
    """Labels and value of each sample by metric name."""
    by_metric: dict[str, list[tuple[str, str]]] = {}
    for model, one in sorted(values.items()):
        for full, value in one.items():
            short, _, second = full.partition(".")
            name = f"edgekit_model_{short}{ending}"
            labels = f'model="{escape_label(model)}"'
            if second:
                labels += f',{_SECOND_LABELS.get(name, "kind")}="{escape_label(second)}"'
            by_metric.setdefault(name, []).append((labels, f"{value:.17g}"))
    return by_metric


def escape_label(label: str) -> str:
    """The value of a label, as it stands between quotes."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""Counters as Prometheus text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@runtime_checkable
class HasGauges(Protocol):
    """A model server that tells what is now, besides what was counted."""

    def gauges(self) -> Mapping[str, Mapping[str, float]]:
        """Values by model, then by name."""
        ...


def gauges_of(server: object) -> Mapping[str, Mapping[str, float]]:
    """What is now, of a server that tells it."""
    return server.gauges() if isinstance(server, HasGauges) else {}


def render(
    counters: Mapping[str, Mapping[str, float]],
    statuses: Mapping[int, int],
    grpc_codes: Mapping[str, int] | None = None,
    gauges: Mapping[str, Mapping[str, float]] | None = None,
) -> bytes:
    """Render rising counters, and what is now.

    Args:
        counters: By model, then by name.
        statuses: HTTP answers by status.
        grpc_codes: gRPC calls by the name of their status; None where gRPC is not served.
        gauges: By model, then by name.
    """
    lines = [
        "# HELP edgekit_http_responses_total Answers by HTTP status.",
        "# TYPE edgekit_http_responses_total counter",
    ]
    lines += [f'edgekit_http_responses_total{{code="{code}"}} {count}' for code, count in sorted(statuses.items())]
    if grpc_codes is not None:
        lines += [
            "# HELP edgekit_grpc_responses_total Calls by gRPC status.",
            "# TYPE edgekit_grpc_responses_total counter",
        ]
        lines += [f'edgekit_grpc_responses_total{{code="{code}"}} {n}' for code, n in sorted(grpc_codes.items())]
    lines += _by_model(counters, "counter", "_total")
    lines += _by_model(gauges or {}, "gauge", "")
    return ("\n".join(lines) + "\n").encode()


def _by_model(values: Mapping[str, Mapping[str, float]], kind: str, ending: str) -> list[str]:
    lines = []
    for name in sorted({name for one in values.values() for name in one}):
        metric = f"edgekit_model_{name}{ending}"
        lines.append(f"# TYPE {metric} {kind}")
        lines += [
            f'{metric}{{model="{_escape(model)}"}} {one[name]:.17g}'
            for model, one in sorted(values.items())
            if name in one
        ]
    return lines


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

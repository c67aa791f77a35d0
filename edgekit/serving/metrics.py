"""Counters as Prometheus text."""

from __future__ import annotations

from collections.abc import Mapping

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(
    counters: Mapping[str, Mapping[str, float]],
    statuses: Mapping[int, int],
    grpc_codes: Mapping[str, int] | None = None,
) -> bytes:
    """Render rising counters.

    Args:
        counters: By model, then by name.
        statuses: HTTP answers by status.
        grpc_codes: gRPC calls by the name of their status; None where gRPC is not served.
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
    for name in sorted({name for one in counters.values() for name in one}):
        metric = f"edgekit_model_{name}_total"
        lines.append(f"# TYPE {metric} counter")
        lines += [
            f'{metric}{{model="{_escape(model)}"}} {one[name]:.17g}'
            for model, one in sorted(counters.items())
            if name in one
        ]
    return ("\n".join(lines) + "\n").encode()


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

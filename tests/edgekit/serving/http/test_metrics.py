"""The text of /metrics, and the table of all metrics."""

from __future__ import annotations

import pytest

from edgekit.serving.http.metrics import METRICS, gauges_of, render
from edgekit.serving.session.latency import Latency


def test_large_counters_keep_every_digit() -> None:
    """Counters are printed with all digits; rounded ones would make wrong rates."""
    text = render({'a"b': {"requests": 12_345_678.0, "run_us": 2.0**50}}, {200: 12_345_678}).decode()
    assert 'edgekit_model_requests_total{model="a\\"b"} 12345678\n' in text
    assert f" {2**50}\n" in text
    assert 'edgekit_http_responses_total{code="200"} 12345678\n' in text


def test_gauges_have_the_gauge_type() -> None:
    """A gauge's name does not end in _total; a server without gauges has none."""

    class Server:
        def gauges(self) -> dict[str, dict[str, float]]:
            return {"m": {"memory_bytes": 3.0}}

    text = render({}, {}, gauges=gauges_of(Server())).decode()
    assert '# TYPE edgekit_model_memory_bytes gauge\nedgekit_model_memory_bytes{model="m"} 3\n' in text
    assert gauges_of(object()) == {}


def test_each_metric_is_printed_once_after_its_help_and_type() -> None:
    """Samples of several models follow one HELP and one TYPE line, which Prometheus requires."""
    text = render({"b": {"runs": 1.0}, "a": {"runs": 2.0}}, {}, {"OK": 3}).decode()
    runs = next(metric for metric in METRICS if metric.name == "edgekit_model_runs_total")
    assert text.endswith(
        f"# HELP edgekit_model_runs_total {runs.help}\n"
        "# TYPE edgekit_model_runs_total counter\n"
        'edgekit_model_runs_total{model="a"} 2\n'
        'edgekit_model_runs_total{model="b"} 1\n'
    )
    assert 'edgekit_grpc_responses_total{code="OK"} 3\n' in text


def test_a_metric_that_is_not_in_the_table_is_an_error() -> None:
    """Rendering fails, so that no metric can be added without a help text."""
    with pytest.raises(LookupError, match="edgekit_model_surprises_total"):
        render({"m": {"surprises": 1.0}}, {})


def test_names_in_the_table_are_unique_and_follow_prometheus_rules() -> None:
    """Counters end in _total, gauges do not; a help text is one sentence on one line."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith(".")
        assert "\n" not in metric.help


def test_latencies_are_histograms_by_model_and_version() -> None:
    """Buckets are cumulative; a duration on a bound counts below it."""
    one = Latency()
    for seconds in (0.0005, 0.001, 0.3, 99.0):
        one.add(seconds)
    text = render({}, {}, latencies={("m", "1.0.0"): one}).decode()
    assert "# TYPE edgekit_model_latency_seconds histogram\n" in text
    labels = 'model="m",version="1.0.0"'
    for bound, count in (("0.001", 2), ("0.25", 2), ("0.5", 3), ("10.0", 3), ("+Inf", 4)):
        assert f'edgekit_model_latency_seconds_bucket{{{labels},le="{bound}"}} {count}\n' in text
    assert f"edgekit_model_latency_seconds_count{{{labels}}} 4\n" in text
    assert f"edgekit_model_latency_seconds_sum{{{labels}}} 99.3015" in text

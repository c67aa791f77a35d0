"""The controller's /metrics is Prometheus text, and the dashboard asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgekit.controller.web.metrics import CONTROLLER_METRICS, Sample, controller_samples, render_samples
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import WebFleet

DASHBOARD = Path(__file__).parents[4] / "deploy" / "grafana-controller.json"
LINE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*\})? [0-9.e+-]+')


def test_metrics_of_the_fleet_and_of_rollouts(fleet: WebFleet, client: Client) -> None:
    """Every line is of the format; a strange machine needs a token."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in lines)
    for line in (
        'edgekit_fleet_devices{presence="online"} 3',
        'edgekit_fleet_target_devices{target="raspberry-pi-4"} 3',
        'edgekit_fleet_model_devices{model="digits",version="1.1.0"} 2',
        'edgekit_rollout_devices{rollout="1",model="digits",version="1.1.0",state="ASSIGNED"} 1',
        'edgekit_rollout_state{rollout="1",model="digits",version="1.1.0",state="RUNNING"} 1',
        "edgekit_fleet_alarms_day 1",
        "edgekit_controller_database 1",
    ):
        assert line in lines
    assert client.get("/metrics", X_Forwarded_For="192.0.2.7").status == 401
    assert Client(fleet.url, token=fleet.tokens["viewer"]).get("/metrics", X_Forwarded_For="192.0.2.7").status == 200


def test_labels_are_escaped_and_unknown_metrics_refused() -> None:
    """A device chooses the names of models that it reports."""
    text = render_samples(CONTROLLER_METRICS, [Sample("edgekit_fleet_model_updating", ('a"b\\c\nd',), 1)]).decode()
    assert text.splitlines()[-1] == 'edgekit_fleet_model_updating{model="a\\"b\\\\c\\nd"} 1'
    with pytest.raises(LookupError):
        render_samples(CONTROLLER_METRICS, controller_samples({"typo": 1}))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """With the labels that they have."""
    names = {metric.name: set(metric.labels) for metric in CONTROLLER_METRICS}
    asked = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    for expression in asked:
        (found,) = re.findall(r"(edgekit_\w+)(?:\{(\w+)!?=)?", expression)
        assert found[0] in names, expression
        assert not found[1] or found[1] in names[found[0]], expression

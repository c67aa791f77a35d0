"""Charts of a device's hours: steps, gaps, both ends, and words for those who do not see them."""

from __future__ import annotations

from edgekit.controller.web.charts import MAX_CHARTS, hour_charts
from edgekit.health.summary import BundleSummary, Summary
from tests.simulators.web_client import Client

HOUR = 3600.0


def hour(index: int, p95: float, model: str = "digits") -> tuple[float, Summary]:
    bundle = BundleSummary(model, "a" * 12, 10, {"local": 0.75, "cloud": 0.25}, p95 / 2, p95)
    return index * HOUR, Summary(1, [bundle], (50.0, 60.0))


def test_an_hour_without_values_interrupts_the_line() -> None:
    """Each hour is a step; the axis begins at 0, and the name of a line has its last value."""
    charts = hour_charts([hour(0, 10.0), hour(1, 20.0), hour(3, 5.0)], 0.0, 4 * HOUR)
    latency, local, heat = charts
    assert latency.title == f"Latency of digits {'a' * 12}, ms"
    assert latency.top == "22"
    assert latency.lines[0].path == "M0.0 87.3H250.0L250.0 14.5H500.0M750.0 123.6H1000.0"
    assert [line.name for line in latency.lines] == ["95 % of answers within 5 ms", "half within 2.5 ms"]
    assert [line.kind for line in latency.lines] == ["solid", "dashed"]
    assert (local.top, local.lines[0].path.count("40.0")) == ("100", 3)
    assert heat.label == "Highest temperature of each hour, °C: temperature 60 °C"


def test_what_lies_outside_the_axis_stays_at_its_ends() -> None:
    """An hour that began before the chart does."""
    (latency, _, _) = hour_charts([hour(0, 10.0)], HOUR / 2, HOUR)
    assert latency.lines[0].path.startswith("M0.0 ")
    assert latency.lines[0].path.endswith("H1000.0")


def test_a_device_with_very_many_models_fills_no_page() -> None:
    """The number of charts is bounded; without telemetry there is none."""
    many = [hour(0, 1.0, f"m{index}") for index in range(100)]
    assert len(hour_charts(many, 0.0, HOUR)) == MAX_CHARTS
    assert hour_charts([], 0.0, HOUR) == []


def test_a_device_shows_its_last_day_its_charts_and_its_alarms(client: Client) -> None:
    """On its page; open alarms also on the page of alarms and in the API."""
    page = client.get("/devices/pi-0001").text
    for text in ("Last 24 hours", "Last two days, by the hour", "Highest temperature", "Open alarms"):
        assert text in page
    assert "answers take 9 ms, before 5 ms" in page
    assert "answers take 9 ms, before 5 ms" in client.get("/alarms").text
    (alarm,) = client.get("/api/v1/alarms").json()
    assert (alarm["device"], alarm["kind"], alarm["ended"]) == ("pi-0001", "latency", None)
    assert "Last two days" not in client.get("/devices/pi-0002").text

"""Alarms: what is judged, the rate of false ones by simulation, and how soon a change is found."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekit.health.alarms import BASELINE_HOURS, MAX_BUNDLES, Baseline, Finding, Limits, judge_hour
from edgekit.health.summary import summarise
from edgekit.sketches.signals import ROUTES, Signal, latency_value
from edgekit.sketches.sketch import Recorder, Sketch

DIGEST = "0123456789ab"


def of(values: np.ndarray, exponent: int) -> Sketch:
    recorder = Recorder(exponent)
    for value in values.tolist():
        recorder.add(value)
    found = recorder.sketch()
    assert found is not None
    return found


def an_hour(
    rng: np.random.Generator,
    requests: int = 400,
    *,
    ms: float = 20.0,
    errors: float = 0.002,
    cloud: float = 0.2,
    shift: float = 0.0,
    celsius: float = 55.0,
    digest: str = DIGEST,
) -> dict[str, Sketch]:
    """The sketches of an hour on a device."""
    seconds = rng.lognormal(np.log(ms / 1000), 0.5, requests)
    routes = rng.choice(len(ROUTES), requests, p=[1 - errors - cloud, cloud, 0.0, errors])
    signals = {
        "latency": of(np.array([latency_value(one) for one in seconds]), -3),
        "route": of(routes.astype(float), 0),
        "score": of(np.clip(rng.beta(8, 2, requests) - shift, 0, 1), -6),
        "class": of(rng.integers(0, 10, requests).astype(float), 0),
    }
    found = {Signal("digits", digest, name).key: sketch for name, sketch in signals.items()}
    return found | {"agent/temperature": of(rng.normal(celsius, 2, 180), 0)}


def grown(rng: np.random.Generator, hours: int = BASELINE_HOURS) -> dict[str, Baseline]:
    baselines: dict[str, Baseline] = {}
    for hour in range(hours):
        baselines, _, fresh = judge_hour(baselines, hour, an_hour(rng))
        assert fresh == {"digits"}
    return baselines


def alarms(found: list[Finding]) -> set[str]:
    return {one.kind for one in found if one.alarm}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, set()),
        ({"ms": 40.0}, {"latency"}),
        ({"ms": 5.0}, set()),
        ({"errors": 0.1}, {"errors"}),
        ({"cloud": 0.6}, {"away"}),
        ({"shift": 0.3}, {"score"}),
        ({"celsius": 85.0}, {"temperature"}),
    ],
)
def test_one_bad_hour_of_400_requests_is_found(changes: dict[str, float], kinds: set[str]) -> None:
    """Each fault by its own kind, and no other; a faster hour is no fault."""
    rng = np.random.default_rng(7)
    _, findings, fresh = judge_hour(grown(rng), 24, an_hour(rng, **changes))
    assert alarms(findings) == kinds
    assert fresh == set()
    assert {one.kind for one in findings} == {"latency", "errors", "away", "score", "class", "temperature"}
    for one in findings:
        assert "the limit is" in one.message or "in the baseline" in one.message


def test_false_alarms_are_as_rare_as_stated() -> None:
    """300 devices whose hours are all alike, at a level of 5 % for each signal, and with every difference mattering."""
    limits = Limits(level=0.05, slower=0.0, shift=0.0, more_errors=0.0, more_away=0.0)
    rng = np.random.default_rng(11)
    counts: dict[str, int] = {}
    for _ in range(300):
        base = judge_hour({}, 0, an_hour(rng, 1000)).baselines
        base = {name: msgspec.structs.replace(one, hours=BASELINE_HOURS) for name, one in base.items()}
        for one in judge_hour(base, 1, an_hour(rng, 150), limits).findings:
            counts[one.kind] = counts.get(one.kind, 0) + one.alarm
    assert counts.keys() == {"latency", "errors", "away", "score", "class", "temperature"}
    assert max(counts.values()) <= 0.05 * 300


def test_few_samples_and_unknown_names_are_not_judged() -> None:
    """Below 50 samples an hour says little; what other names stand for is not known."""
    rng = np.random.default_rng(5)
    base = grown(rng)
    odd = {"digits@0123456789ab/newer": of(np.ones(99), 0), "": of(np.ones(99), 0)}
    found = judge_hour(base, 24, an_hour(rng, 40, errors=0.9, cloud=0.0) | odd)
    assert {one.kind for one in found.findings} == {"temperature"}


def test_a_new_bundle_begins_a_baseline_of_its_own() -> None:
    """Its answers are not compared with another bundle's, and the oldest baselines go."""
    rng = np.random.default_rng(6)
    base = grown(rng)
    found = judge_hour(base, 24, an_hour(rng, digest="f" * 12, shift=0.5, ms=500.0))
    assert alarms(found.findings) == set()
    assert found.fresh == {"digits"}
    hour = an_hour(rng, 60)
    many = {key.replace(DIGEST, f"{number:012d}"): one for number in range(60) for key, one in hour.items()}
    found = judge_hour(base, 25, many)
    assert {f"digits@{number:012d}" for number in range(60)} < found.baselines.keys(), "a device may have many models"
    base = judge_hour(found.baselines, 26, {key.replace("@0", "@1"): one for key, one in many.items()}).baselines
    assert len(base) == MAX_BUNDLES
    assert f"digits@1{59:011d}" in base
    assert f"digits@{DIGEST}" not in base


def test_a_summary_says_what_the_hours_said() -> None:
    """Shares, quantiles within a bin, and temperatures."""
    rng = np.random.default_rng(8)
    found = summarise([an_hour(rng), an_hour(rng)])
    (bundle,) = found.bundles
    assert (found.hours, bundle.model, bundle.digest, bundle.requests) == (2, "digits", DIGEST, 800)
    assert bundle.routes["cloud"] == pytest.approx(0.2, abs=0.05)
    assert bundle.p50_ms == pytest.approx(20, rel=0.1)
    assert bundle.p95_ms == pytest.approx(20 * np.exp(1.645 * 0.5), rel=0.15)
    assert found.temperature_celsius[0] == pytest.approx(55, abs=1)
    assert summarise([]).bundles == []

"""Refusals are foreseen from what devices report, before anything is sent."""

from __future__ import annotations

import pytest

from edgekit.mqtt.messages import Running
from edgekit.rollout.preflight import refusal
from edgekit.trust.assignment import Entry


def entry(version: str, release: int, *, downgrade: bool = False) -> Entry:
    return Entry("p", 1, f"{release:064x}", "m", "t", version, release, downgrade)


def runs(version: str, release: int, highest: str = "") -> Running:
    return Running(f"{release:064x}", version, release=release, highest=highest)


@pytest.mark.parametrize(
    ("running", "offered", "reason"),
    [
        (None, entry("1.0.0", 1), ""),
        (Running(), entry("1.0.0", 1), ""),
        (runs("1.0.0", 1, "1.0.0"), entry("1.0.0", 1), ""),
        (runs("1.0.0", 2, "1.0.0"), entry("2.0.0", 1), ""),
        (runs("2.0.0", 1, "2.0.0"), entry("1.2.1", 2), "it has run 2.0.0, 1.2.1 is older, and no downgrade"),
        (runs("1.0.0", 1, "3.0.0"), entry("2.0.0", 2), "it has run 3.0.0, 2.0.0 is older"),
        (runs("2.0.0", 2), entry("1.0.0", 1), "it has run 2.0.0"),
        (runs("1.2.1", 3), entry("2.0.0", 2), "its edgekit takes the order of publishing"),
        (runs("2.0.0", 1, "2.0.0"), entry("1.0.0", 2, downgrade=True), "its publisher does not allow"),
    ],
)
def test_a_refusal_is_foreseen(running: Running | None, offered: Entry, reason: str) -> None:
    """By version for current agents; earlier ones compare the release counters too."""
    found = refusal(running, offered, allowed=False)
    assert reason in found if reason else found == ""


def test_a_downgrade_that_both_sides_allow_is_taken() -> None:
    """The operator asks for it, and the publisher allows it."""
    assert refusal(runs("2.0.0", 1, "2.0.0"), entry("1.0.0", 2, downgrade=True), allowed=True) == ""

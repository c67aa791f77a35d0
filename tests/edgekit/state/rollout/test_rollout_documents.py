"""Rollouts are listed from counts in SQL, and the counts are those of the rollouts with all their devices."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from edgekit.mqtt.messages import Outcome, Reported, Running
from edgekit.rollout.cohort import Device
from edgekit.rollout.document import document
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import Aborted
from edgekit.state import FleetState, open_fleet_state
from edgekit.trust.assignment import Entry

DIGEST = "2" * 64


@pytest.fixture
def state(tmp_path):
    opened = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f")
    yield opened
    opened.close()


def start(state: FleetState, model: str) -> int:
    entries = {"t": Entry(f"models/{model}/t/1.0.0/manifest.json", 9, DIGEST, model, "t", "1.0.0", 1)}
    plan = RolloutPlan(parse_waves("100%"), min_failures=9)
    return state.rollouts.start(model, "1.0.0", entries, plan=plan, now=1000.0).id


def say(state: FleetState, name: str, number: int, model: str, result: str, digest: str = DIGEST) -> None:
    outcome = Outcome(deployment=DIGEST, version="1.0.0", result=result, error="", at=1001.0 + number)
    report = Reported(name, "f", number, 0.0, 1, {model: Running(digest, "1.0.0")}, {model: outcome})
    state.devices.save_report(report, 1001.0 + number)


def test_listed_rollouts_equal_the_whole_ones(state: FleetState) -> None:
    """With every state of a device, late ones and an aborted rollout; the newest first, page by page."""
    for name in ("a", "b", "c", "d"):
        state.devices.enroll(Device(name, "other" if name == "d" else "t", "pem"))
    first, second = start(state, "first"), start(state, "second")
    for number in (first, second):
        state.rollouts.survey(number, 1001.0)
    say(state, "a", 1, "first", "succeeded")
    say(state, "b", 1, "first", "failed", digest="")
    state.rollouts.survey(first, 1003.0)
    state.rollouts.apply(first, Aborted(), 1004.0)
    say(state, "b", 5, "first", "succeeded")
    assert state.rollouts.watch_ended(1010.0, 0.0) == [first]
    listed = state.rollouts.documents()
    assert listed == [document(state.rollouts.get(second)), document(state.rollouts.get(first))]
    assert listed[1].late == 1
    assert listed[1].counts == {**dict.fromkeys(listed[1].counts, 0), "SUCCEEDED": 2, "TOLD": 1, "SKIPPED": 1}
    assert state.rollouts.documents(limit=1) == listed[:1]
    assert state.rollouts.documents(before=second) == listed[1:]
    assert "devices" not in msgspec.to_builtins(listed[0])


def test_the_list_takes_as_many_statements_for_many_rollouts_as_for_one(state: FleetState) -> None:
    """Two: the rollouts, and the counts of their devices."""
    state.devices.enroll(Device("a", "t", "pem"))
    statements: list[str] = []
    sa.event.listen(state._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for model in ("one", "two", "three"):
        start(state, model)
        statements.clear()
        state.rollouts.documents()
        counts.append(sum(text.lstrip().startswith("SELECT") for text in statements))
    assert counts == [2, 2, 2]

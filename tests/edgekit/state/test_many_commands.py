"""One command for many devices: in one transaction, with a number and an audit entry for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from edgekit.errors import RefusedError
from edgekit.mqtt.messages import Result
from edgekit.rollout.cohort import Device
from edgekit.state import FleetState, open_fleet_state
from edgekit.state.fleet.commands import CHUNK, MAX_ENDED
from tests.simulators.postgres import emptied, missing, running_postgres

NAMES = [f"pi-{index:04d}" for index in range(CHUNK + 20)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def state(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[FleetState]:
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('state') / 'fleet.db'}"
        if request.param == "postgresql":
            if reason := missing():
                pytest.skip(reason)
            url = emptied(stack.enter_context(running_postgres()))
        opened = stack.enter_context(contextlib.closing(open_fleet_state(url, "f", author="ann")))
        _enroll(opened)
        yield opened


def _enroll(opened: FleetState) -> None:
    with opened.together():
        for name in NAMES:
            opened.devices.enroll(Device(name, "t", f"key of {name}", enrolled=1.0))


def test_every_device_has_its_own_number_and_audit_entry(state: FleetState) -> None:
    """Numbers go on from those of single commands, and the chain of the log stays whole."""
    first = state.commands.add(NAMES[3], "logs", args={"lines": 5}, now=100.0, expires=160.0)
    before = state.audit.verify()[0]
    made = state.commands.add_all("logs", {name: {"lines": 7} for name in NAMES}, now=101.0, expires=161.0)
    assert [one.device for one in made] == NAMES
    assert made[3].number == first.number + 1
    assert made[-1] == state.commands.get(NAMES[-1], made[-1].number)
    assert state.audit.verify()[0] == before + len(NAMES)
    (entry,) = state.audit.entries(subject=NAMES[-1], what="command")
    assert entry.after == {"args": {"lines": 7}, "expires": 161.0, "kind": "logs", "number": made[-1].number}


def test_none_is_stored_where_one_device_cannot_get_it(state: FleetState) -> None:
    """Also where it is in a later part of the devices than the first."""
    before = len(state.commands.latest(limit=10_000))
    state.lifecycle.quarantine(NAMES[-1], "clone", 200.0)
    with pytest.raises(RefusedError, match=NAMES[-1]):
        state.commands.add_all("restart", {name: {} for name in NAMES}, now=201.0, expires=261.0)
    assert len(state.commands.latest(limit=10_000)) == before
    state.lifecycle.release(NAMES[-1], 202.0)


def test_only_ended_commands_of_each_device_are_dropped(state: FleetState) -> None:
    """The newest stay, those without an answer too, and those of others."""
    kept = len(state.commands.latest(NAMES[1], limit=1000))
    with state.together():
        for at in range(MAX_ENDED + 5):
            sent = state.commands.add(NAMES[0], "self-test", now=300.0 + at, expires=900.0)
            state.commands.save_result(Result(NAMES[0], sent.number, True, "ok"))
    waiting = state.commands.add(NAMES[0], "self-test", now=500.0, expires=900.0)
    found = state.commands.latest(NAMES[0], limit=1000)
    assert sum(one.state == "done" for one in found) == MAX_ENDED
    assert found[0] == waiting
    assert len(state.commands.latest(NAMES[1], limit=1000)) == kept

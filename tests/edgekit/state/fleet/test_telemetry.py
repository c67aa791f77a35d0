"""Roll-ups, baselines and alarms in SQL, on both kinds of databases."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgekit.errors import DataError, NotFoundError
from edgekit.health.alarms import BASELINE_HOURS
from edgekit.mqtt.messages import Event, Reported, Telemetry
from edgekit.rollout.cohort import Device
from edgekit.sketches.sketch import Sketch, made
from edgekit.state import FleetState, open_fleet_state
from edgekit.state.fleet.alarms import MAX_CLOSED_ALARMS
from edgekit.state.fleet.drift import MAX_OPEN
from edgekit.state.fleet.telemetry import check_telemetry
from tests.simulators.postgres import emptied, missing, running_postgres

HOUR = 3600.0
KEY = "digits@0123456789ab/route"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    return emptied(request.getfixturevalue("postgres"))


@pytest.fixture
def state(url: str) -> Iterator[FleetState]:
    opened = open_fleet_state(url, "f")
    yield opened
    opened.close()


def routes(local: int, error: int = 0) -> Sketch:
    bins = {index: count for index, count in ((0, local), (3, error)) if count}
    return made(0, bins, (float(min(bins)), float(max(bins))), local + error)


def message(number: int, *, session: int = 1, device: str = "a", local: int = 100, error: int = 0) -> Telemetry:
    return Telemetry(
        device, 0.0, 60.0, {"digits.requests": 5.0, "idle": 0.0}, {KEY: routes(local, error)}, session, number
    )


def test_messages_of_an_hour_add_up_once_each(state: FleetState) -> None:
    """Repetitions, messages out of order and those of an older session are not counted again; a lost one is missing."""
    for number in (1, 2, 2, 1, 4):
        state.telemetry.add(message(number), 10 * HOUR + number)
    assert not state.telemetry.add(message(9, session=0), 10 * HOUR)
    assert state.telemetry.add(message(1, session=2), 10 * HOUR)
    assert state.telemetry.add(message(2, session=2), 11 * HOUR)
    (first, second) = state.telemetry.hours("a")
    assert (first.start, first.body.seconds, first.body.counters) == (10 * HOUR, 240.0, {"digits.requests": 20.0})
    assert first.body.sketches == {KEY: routes(400)}
    assert second.body.sketches == {KEY: routes(100)}
    assert [one.start for one in state.telemetry.hours("a", since=10.5 * HOUR)] == [11 * HOUR]


def test_a_device_that_lost_its_disk_is_heard_again(state: FleetState) -> None:
    """Its sessions begin anew; its signed report says in which one it is, so nothing waits for a restart."""
    state.devices.save_report(Reported("a", "f", 50, 0.0, 0, {}, {}, session=57), 1.0)
    assert state.telemetry.add(message(900, session=57), 2.0)
    assert not state.telemetry.add(message(1, session=2), 3.0)
    state.devices.save_report(Reported("a", "f", 51, 0.0, 0, {}, {}, session=2), 4.0)
    assert state.telemetry.add(message(2, session=2), 5.0)
    assert not state.telemetry.add(message(2, session=2), 6.0)
    state.devices.save_report(Reported("a", "f", 52, 0.0, 0, {}, {}, session=2), 7.0)
    assert not state.telemetry.add(message(2, session=2), 8.0)
    assert state.telemetry.add(message(1, session=58), 9.0)


def test_a_device_with_many_models_is_heard(state: FleetState) -> None:
    """Counters that did not rise cost nothing, so that forty models with thirty counters each are no fault."""
    counters = {f"m{model}.c{n}": float(n < 10) for model in range(40) for n in range(30)}
    assert state.telemetry.add(msgspec.structs.replace(message(1), counters=counters), 0.0)
    (hour,) = state.telemetry.hours("a")
    assert len(hour.body.counters) == 400


def test_messages_without_a_number_or_content_are_not_rolled_up(state: FleetState) -> None:
    """Older agents cannot be told from their repetitions; an idle device costs no row."""
    assert not state.telemetry.add(Telemetry("a", 0.0, 60.0, {"n": 5.0}), 1.0)
    assert not state.telemetry.add(Telemetry("a", 0.0, 60.0, {"n": 0.0}, {}, 1, 1), 1.0)
    assert state.telemetry.hours("a") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"sketches": {KEY: Sketch(0, 0, (-1,), 0.0, 0.0, 1)}},
        {"sketches": {"no name": routes(1)}},
        {"sketches": {f"m@0123456789ab/input.{n}": routes(1) for n in range(65)}},
        {"counters": {"n": float("nan")}},
        {"counters": {"n": -1.0}},
        {"counters": {f"n{n}": 1.0 for n in range(2_001)}},
        {"counters": {"n" * 161: 1.0}},
        {"seconds": float("inf")},
        {"number": 2**60},
    ],
)
def test_what_cannot_be_added_is_refused_and_loses_nothing(state: FleetState, changes: dict) -> None:
    """The message is refused as a whole; what was stored stays, and the next one is added."""
    state.telemetry.add(message(1), 0.0)
    with pytest.raises(DataError):
        state.telemetry.add(msgspec.structs.replace(message(2), **changes), 0.0)
    assert state.telemetry.add(message(2), 0.0)
    (hour,) = state.telemetry.hours("a")
    assert hour.body.sketches[KEY].total == 200


def fill(state: FleetState, hours: range, **counts: int) -> None:
    for hour in hours:
        state.telemetry.add(message(hour + 1, **counts), hour * HOUR + 5)


def test_an_alarm_is_raised_kept_and_ended(state: FleetState) -> None:
    """By whole hours only; each is judged once, and an alarm that ended stays in the list of all."""
    fill(state, range(BASELINE_HOURS), local=500)
    fill(state, range(24, 26), local=400, error=100)
    assert state.telemetry.judge(25 * HOUR) == 25, "hour 25 is not over"
    (first,) = state.alarms.all()
    assert (first.device, first.model, first.kind, first.since, first.ended) == (
        "a",
        "digits",
        "errors",
        24 * HOUR,
        None,
    )
    assert "20.00% of 500 requests failed, in the baseline 0.00%" in first.message
    assert state.telemetry.judge(26 * HOUR + 1) == 1
    assert state.telemetry.judge(26 * HOUR + 1) == 0
    (still,) = state.alarms.all("a")
    assert (still.since, still.seen) == (24 * HOUR, 25 * HOUR)
    fill(state, range(26, 27), local=500)
    state.telemetry.judge(28 * HOUR)
    assert state.alarms.all() == []
    (ended,) = state.alarms.all(ended=True)
    assert ended.ended == 26 * HOUR
    (event,) = state.devices.events("a")
    assert (event.kind, event.model, event.error) == ("alarm", "digits", "errors")


def test_a_new_bundle_ends_the_alarms_of_the_one_before(state: FleetState) -> None:
    """It is not compared with it, so nothing else would end them."""
    fill(state, range(BASELINE_HOURS), local=500)
    fill(state, range(24, 25), error=500, local=1)
    state.telemetry.judge(25 * HOUR)
    assert len(state.alarms.all()) == 1
    new = msgspec.structs.replace(message(99), sketches={KEY.replace("0123", "ffff"): routes(10)})
    state.telemetry.add(new, 25 * HOUR)
    state.telemetry.judge(26 * HOUR)
    assert state.alarms.all() == []


def test_the_first_message_of_a_device_is_added_once_by_two_controllers(url: str) -> None:
    """At the same moment, for one device after the other: there is no row yet that the first could lock."""
    states = [open_fleet_state(url, "f") for _ in range(2)]
    barrier, added = threading.Barrier(2), []

    def work(state: FleetState) -> None:
        for number in range(20):
            barrier.wait(60)
            added.append(state.telemetry.add(message(1, device=f"d-{number}"), HOUR))

    threads = [threading.Thread(target=work, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [False] * 20 + [True] * 20
    for state in states:
        state.close()


def test_two_controllers_judge_each_hour_once(url: str) -> None:
    """Both get each message, both judge: every hour is counted once and judged once."""
    states = [open_fleet_state(url, "f") for _ in range(2)]
    judged: list[int] = []

    def work(state: FleetState) -> None:
        for hour in range(12):
            state.telemetry.add(message(hour + 1), hour * HOUR)
        judged.append(state.telemetry.judge(99 * HOUR))

    threads = [threading.Thread(target=work, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hours = states[0].telemetry.hours("a")
    assert sum(hour.body.sketches[KEY].total for hour in hours) == 1200
    assert sum(judged) + states[0].telemetry.judge(99 * HOUR) == 12
    for state in states:
        state.close()


def test_a_removed_device_leaves_none_and_a_new_key_counts_anew(state: FleetState) -> None:
    """Its roll-ups and alarms go with it; after a new key, lower numbers count again."""
    state.devices.enroll(Device("a", "pi", "pem"))
    state.telemetry.add(message(9, session=9), 0.0)
    state.lifecycle.rekey("a", "another pem", 1.0)
    assert state.telemetry.add(message(1, session=1), 0.0)
    state.lifecycle.remove("a", 2.0)
    assert state.telemetry.hours("a") == []


def test_old_roll_ups_are_deleted_and_baselines_stay(state: FleetState) -> None:
    """By whole days; what a bundle is compared with is older than that."""
    fill(state, range(30), local=500)
    state.telemetry.judge(30 * HOUR)
    assert state.telemetry.forget(30 * HOUR, 1) == 6
    assert len(state.telemetry.hours("a")) == 24
    state.telemetry.forget(1000 * HOUR, 1)
    state.telemetry.add(message(99, error=400), 1000 * HOUR)
    state.telemetry.judge(1001 * HOUR)
    assert [one.kind for one in state.alarms.all()] == ["errors"]


def drift(kind: str = "drift", *, subject: str = "input.x", message: str = "moved", device: str = "a", **more: object):
    return Event(device, kind, 5.0, "digits", subject, message, {"subject": subject, **more})


def test_devices_raise_and_end_alarms_of_drift(state: FleetState) -> None:
    """Each subject has an alarm; what is told twice is one alarm, and the end is stored."""
    assert state.drift.save(drift(), 1.0)
    assert state.drift.save(drift(subject="score"), 2.0)
    assert not state.drift.save(drift(again=True), 3.0)
    assert state.drift.save(drift(message="moved further"), 4.0)
    assert {(one.kind, one.message, one.since) for one in state.alarms.all("a")} == {
        ("drift.input.x", "moved further", 1.0),
        ("drift.score", "moved", 2.0),
    }
    assert state.drift.save(drift("drift-ended"), 6.0)
    assert not state.drift.save(drift("drift-ended"), 7.0)
    (open_one,) = state.alarms.all("a")
    assert open_one.kind == "drift.score"
    assert [event.kind for event in state.devices.events("a")] == ["drift-ended", "drift", "drift", "drift"]


def test_an_operator_ends_alarms_of_drift(state: FleetState) -> None:
    """The device's repetition does not raise it again, whatever it says by then; a new drift does."""
    state.drift.save(drift(), 1.0)
    state.drift.save(drift(subject="score"), 1.0)
    (one,) = state.by("ann@desk").alarms.end("a", "digits", "drift.score", "lens cleaned", 2.0)
    assert (one.kind, one.ended, one.ended_by, one.reason) == ("drift.score", 2.0, "ann@desk", "lens cleaned")
    assert [one.kind for one in state.alarms.end("a", "", "", "", 2.0)] == ["drift.input.x"]
    for model, kind in (("", ""), ("other", ""), ("digits", "latency")):
        with pytest.raises(NotFoundError, match="no open alarm"):
            state.alarms.end("a", model, kind, "", 3.0)
    assert not state.drift.save(drift(again=True), 4.0)
    assert not state.drift.save(drift(again=True, message="moved further"), 4.0)
    assert state.alarms.all("a") == []
    assert state.drift.save(drift(), 5.0)
    assert len(state.alarms.all("a")) == 1
    assert state.drift.save(drift("drift-ended", subject="score"), 6.0), "the end of a held one is news"
    assert not state.drift.save(drift("drift-ended", subject="score"), 6.0)
    assert state.drift.save(drift(subject="score", again=True, message="moved anew"), 7.0)
    first, second = state.audit.entries(what="alarm.end")
    assert (second.who, second.after) == (
        "ann@desk",
        {"model": "digits", "kinds": ["drift.score"], "reason": "lens cleaned"},
    )
    assert first.after["kinds"] == ["drift.input.x"]


def test_an_operator_ends_alarms_of_telemetry_by_the_same_rule(state: FleetState) -> None:
    """Bad hours that follow do not raise it again, and are no news; a good hour lets the next bad one do so."""
    fill(state, range(BASELINE_HOURS), local=500)
    fill(state, range(24, 27), local=400, error=100)
    state.telemetry.judge(25 * HOUR)
    (one,) = state.alarms.end("a", "digits", "errors", "known: camera is being replaced", 25 * HOUR + 9.0)
    state.telemetry.judge(27 * HOUR)
    assert state.alarms.all("a") == []
    (kept,) = state.alarms.all("a", ended=True)
    assert (kept.ended, kept.seen, kept.reason) == (one.ended, 26 * HOUR, "known: camera is being replaced")
    assert len(state.devices.events("a")) == 1
    fill(state, range(27, 28), local=500)
    fill(state, range(28, 29), local=400, error=100)
    state.telemetry.judge(29 * HOUR)
    (again,) = state.alarms.all("a")
    assert (again.since, again.ended_by) == (28 * HOUR, "")
    assert len(state.devices.events("a")) == 2


def test_a_new_bundle_lets_an_alarm_that_was_ended_be_raised(state: FleetState) -> None:
    """What was accepted of one bundle was not accepted of the next."""
    fill(state, range(BASELINE_HOURS), local=500)
    fill(state, range(24, 25), local=400, error=100)
    state.telemetry.judge(25 * HOUR)
    state.alarms.end("a", "", "", "", 25 * HOUR)
    other = KEY.replace("0123", "ffff")
    for hour in range(25, 51):
        counts = {"local": 500} if hour < 50 else {"local": 400, "error": 100}
        new = msgspec.structs.replace(message(hour + 1), sketches={other: routes(**counts)})
        state.telemetry.add(new, hour * HOUR)
    state.telemetry.judge(51 * HOUR)
    assert [one.since for one in state.alarms.all("a")] == [50 * HOUR]


def test_hours_of_telemetry_do_not_end_alarms_of_drift(state: FleetState) -> None:
    """A fresh baseline ends the alarms of an earlier bundle; the device itself ends those of drift."""
    state.drift.save(drift(), 9 * HOUR)
    state.telemetry.add(message(1), 10 * HOUR)
    assert state.telemetry.judge(11 * HOUR) == 1
    assert [one.kind for one in state.alarms.all("a")] == ["drift.input.x"]


def test_a_device_cannot_fill_the_table_of_alarms(state: FleetState) -> None:
    """Open and ended ones are limited, and names are cut."""
    for number in range(300):
        state.drift.save(drift(subject=f"input.{number}" + "x" * 500), float(number))
    assert len(state.alarms.all("a")) == MAX_OPEN
    for number in range(300):
        state.drift.save(drift(subject=str(number), device="b"), float(number))
        state.drift.save(drift("drift-ended", subject=str(number), device="b"), float(number))
    assert len(state.alarms.all("b", ended=True, limit=1000)) == MAX_CLOSED_ALARMS + 1


def test_messages_that_come_together_count_once_each(state: FleetState) -> None:
    """In one batch and over batches, for each device by its own numbers."""
    for name in "ab":
        state.devices.enroll(Device(name, "t", "key"))
    batch = [message(1), message(2), message(2), message(1, device="b"), message(1), message(3)]
    assert state.telemetry.add_all([check_telemetry(one) for one in batch], 10.0) == 4
    assert state.telemetry.add_all([check_telemetry(message(3)), check_telemetry(message(4))], 20.0) == 1
    (hour,), (other,) = state.telemetry.hours("a"), state.telemetry.hours("b")
    assert (hour.body.seconds, hour.body.counters) == (240.0, {"digits.requests": 20.0})
    assert hour.body.sketches[KEY].total == 400
    assert other.body.sketches[KEY].total == 100

"""The rollout machine: its table, typical sequences of events, and invariants."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RefusedError, SettingsError
from edgekit.mqtt.messages import Outcome, Running
from edgekit.rollout import machine as m
from edgekit.rollout.machine import step
from edgekit.rollout.plan import DEFAULT_WAVES, RolloutPlan, Wave, parse_waves
from edgekit.rollout.values import (
    Aborted,
    Assign,
    DeviceState,
    DeviceStatus,
    Paused,
    Resumed,
    Revert,
    Rollout,
    RolloutState,
    Started,
    Surveyed,
)

NEW, OLD = "a" * 64, "b" * 64
EVENTS = (Started(), Surveyed(), Paused(), Resumed(), Aborted())


def idle(digest=OLD):
    return DeviceStatus(digest=NEW, running=Running(digest=digest))


def refused(at=5.0, result="refused"):
    outcome = Outcome(deployment=NEW, version="1.1.0", result=result, error="SelfTestError", message="wrong", at=at)
    return DeviceStatus(digest=NEW, running=Running(digest=OLD), outcome=outcome)


class Story:
    """A rollout and the effects that it returned."""

    def __init__(self, devices, **plan):
        self.now = 1000.0
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=RolloutPlan(**plan))
        self.effects, self.wake_at = [], None
        self.take(Started())
        self.take(Surveyed(dict.fromkeys([f"d-{i}" for i in range(devices)], idle())))

    def take(self, event):
        result = step(self.state, event, self.now)
        self.state, self.wake_at = result.state, result.wake_at
        self.effects += result.effects
        return result

    def see(self, name, sight):
        return self.take(Surveyed({name: sight}))

    @property
    def assigned(self):
        return [effect.device for effect in self.effects if isinstance(effect, Assign)]

    def named(self, state):
        return {name for name, progress in self.state.devices.items() if progress.state is state}


# --- rows


def test_every_state_and_event_has_a_row_or_is_refused():
    """An event that a state does not allow is refused with the state's name; a survey is always allowed."""
    for state, event in itertools.product(RolloutState, EVENTS):
        rollout = Rollout(id=1, model="m", version="1.0.0", state=state)
        if (state, type(event)) in m.TABLE:
            assert step(rollout, event, 1000.0).state.id == 1
        else:
            assert not isinstance(event, Surveyed)
            with pytest.raises(RefusedError, match=state.value):
                step(rollout, event, 1000.0)


def test_ended_rollouts_change_no_more():
    """Finished and aborted rollouts stay in their state."""
    for state in (RolloutState.FINISHED, RolloutState.ABORTED):
        rollout = Rollout(id=1, model="m", version="1.0.0", state=state)
        assert {event for at, event in m.TABLE if at is state} == {Surveyed}
        assert step(rollout, Surveyed({"d": idle()}), 1.0).state == rollout


def test_state_survives_serialisation():
    """The machine can be stopped and resumed from its JSON at any point."""
    story = Story(5)
    story.see(story.assigned[0], idle(NEW))
    assert msgspec.json.decode(msgspec.json.encode(story.state), type=Rollout) == story.state


# --- stories


def test_waves_follow_each_other_to_the_end():
    """A wave begins when the one before has succeeded; the rollout finishes when all have."""
    story = Story(10)
    assert len(story.assigned) == 1
    story.see(story.assigned[0], idle(NEW))
    assert len(story.assigned) == 5
    for name in list(story.assigned):
        story.see(name, idle(NEW))
    assert len(story.assigned) == 10
    assert story.state.state is RolloutState.RUNNING
    for name in list(story.assigned):
        story.see(name, idle(NEW))
    assert story.state.state is RolloutState.FINISHED
    assert story.state.counts()["SUCCEEDED"] == 10


def test_being_told_is_not_success():
    """Only a reported digest, committed and idle, counts."""
    story = Story(1)
    story.see("d-0", idle(OLD))
    assert story.named(DeviceState.ASSIGNED) == {"d-0"}
    story.see("d-0", DeviceStatus(digest=NEW, running=Running(digest=NEW, state="PROBATION")))
    assert story.named(DeviceState.ASSIGNED) == {"d-0"}
    story.see("d-0", idle(NEW))
    assert story.state.state is RolloutState.FINISHED


def test_a_device_that_only_removes_old_files_has_succeeded():
    """Its bundle is committed then; to wait for its next report made each wave two seconds longer."""
    story = Story(1)
    story.see("d-0", DeviceStatus(digest=NEW, running=Running(digest=NEW, state="CLEANING")))
    assert story.state.state is RolloutState.FINISHED


def test_one_failure_of_three_devices_pauses():
    """In a small fleet the first failure stops the rollout before anyone else is assigned, and the reason says so."""
    story = Story(3)
    story.see(story.assigned[0], refused())
    assert story.state.state is RolloutState.PAUSED
    assert "1 of 1 assigned devices failed" in story.state.reason
    assert len(story.assigned) == 1
    failed = story.state.devices[story.assigned[0]]
    assert failed.reason == "refused: SelfTestError: wrong"


def test_few_failures_in_a_large_fleet_do_not_pause():
    """The error threshold is a share of the assigned devices."""
    story = Story(100, waves=(Wave(share=1.0),))
    for i in range(10):
        story.see(f"d-{i}", refused())
    assert story.state.state is RolloutState.RUNNING
    story.see("d-10", refused())
    assert story.state.state is RolloutState.PAUSED


def test_min_failures_holds_the_threshold_back():
    """With a minimum of two, one failure of one assigned device does not pause yet."""
    story = Story(3, waves=(Wave(share=1.0),), min_failures=2)
    story.see("d-0", refused())
    assert story.state.state is RolloutState.RUNNING
    story.see("d-1", refused())
    assert story.state.state is RolloutState.PAUSED


def test_silence_is_failure():
    """An assigned device that reports nothing until its deadline has failed; `wake_at` is that deadline."""
    story = Story(2, device_deadline_seconds=60)
    assert story.wake_at == 1060.0
    story.now = 1059.0
    story.take(Surveyed())
    assert story.state.state is RolloutState.RUNNING
    story.now = 1060.0
    story.take(Surveyed())
    assert story.state.state is RolloutState.PAUSED
    assert story.state.devices[story.assigned[0]].reason.startswith("silent")


def test_late_success_replaces_silence():
    """A device that failed by its deadline counts as succeeded when it reports the digest later."""
    story = Story(2, device_deadline_seconds=60)
    story.now = 1100.0
    story.take(Surveyed())
    story.see(story.assigned[0], idle(NEW))
    assert story.named(DeviceState.SUCCEEDED) == {story.assigned[0]}
    story.take(Resumed())
    assert len(story.assigned) == 2


def test_roll_back_after_success_is_failure():
    """A device that ran the new bundle and rolled back counts as failed."""
    story = Story(10)
    story.see(story.assigned[0], idle(NEW))
    story.see(story.assigned[0], refused(result="rolled-back"))
    assert story.named(DeviceState.FAILED) == {story.assigned[0]}
    assert story.state.state is RolloutState.PAUSED


def test_failure_from_before_does_not_count_again():
    """A failure of the same digest that the device reported before its assignment does not count."""
    story = Story(0)
    story.see("d-0", refused(at=5.0))
    assert story.assigned == ["d-0"]
    story.see("d-0", refused(at=5.0))
    assert story.named(DeviceState.ASSIGNED) == {"d-0"}
    story.see("d-0", refused(at=6.0))
    assert story.state.state is RolloutState.PAUSED


def test_resume_excuses_failures_and_restarts_deadlines():
    """After a resume, earlier failures do not count, and the deadlines of assigned devices start again."""
    story = Story(10, waves=(Wave(count=2), Wave(share=1.0)), device_deadline_seconds=60)
    story.see(story.assigned[0], refused())
    story.now = 5000.0
    story.take(Resumed())
    assert story.state.state is RolloutState.RUNNING
    assert story.wake_at == 5060.0
    story.see(story.assigned[1], idle(NEW))
    assert len(story.assigned) == 10


def test_pause_by_an_operator_tells_nobody():
    """While paused, reports are counted and no device is assigned."""
    story = Story(10)
    story.take(Paused("lunch"))
    story.see(story.assigned[0], idle(NEW))
    assert story.named(DeviceState.SUCCEEDED) == {story.assigned[0]}
    assert len(story.assigned) == 1
    assert story.state.reason == "lunch"
    story.take(Resumed())
    assert len(story.assigned) == 5


def test_abort_withdraws_what_was_not_activated():
    """Devices that succeeded keep the bundle; assigned and failed ones get their previous one back."""
    story = Story(10, waves=(Wave(count=3), Wave(share=1.0)), error_threshold=1.0)
    done, failed, assigned = story.assigned
    story.see(done, idle(NEW))
    story.see(failed, refused())
    result = story.take(Aborted("wrong model"))
    assert {effect.device for effect in result.effects} == {failed, assigned}
    assert all(isinstance(effect, Revert) for effect in result.effects)
    assert story.state.state is RolloutState.ABORTED
    assert story.state.reason == "wrong model"


def test_device_without_bundle_is_skipped_until_there_is_one():
    """A target without a bundle does not delay the rollout; when a bundle is published, its devices are assigned."""
    story = Story(0)
    story.see("jetson", DeviceStatus(digest=""))
    assert story.named(DeviceState.SKIPPED) == {"jetson"}
    assert story.state.state is RolloutState.RUNNING
    story.see("jetson", idle())
    assert story.assigned == ["jetson"]


def test_device_that_enrolls_late_is_told():
    """A running rollout reaches devices that appear after its start."""
    story = Story(1)
    story.take(Surveyed({"late": idle(), "d-0": idle()}))
    assert len(story.assigned) == 1
    story.see("d-0", idle(NEW))
    assert story.assigned == ["d-0", "late"]


def test_wave_that_ends_below_the_success_threshold_pauses():
    """If a wave ends between the thresholds, the rollout pauses with a reason; it never hangs."""
    story = Story(4, waves=(Wave(count=2), Wave(share=1.0)), success_threshold=1.0, error_threshold=0.5)
    story.see(story.assigned[0], idle(NEW))
    story.see(story.assigned[1], refused())
    assert story.state.state is RolloutState.PAUSED
    assert "wave 1 ended" in story.state.reason


# --- plans


def test_waves_parse_as_people_write_them():
    """Shares and counts can be mixed."""
    assert parse_waves("1, 10%,100%") == (Wave(count=1), Wave(share=0.1), Wave(share=1.0))
    for bad in ("ten%", "1.5", ""):
        with pytest.raises(SettingsError, match="neither"):
            parse_waves(bad)


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"waves": (Wave(share=0.5),)}, "last wave must be 100%"),
        ({"waves": (Wave(share=0.5), Wave(share=0.1), Wave(share=1.0))}, "waves must rise"),
        ({"waves": (Wave(count=-1), Wave(share=1.0))}, "neither"),
        ({"error_threshold": 1.5}, "error_threshold is 1.5"),
        ({"success_threshold": -0.1}, "success_threshold"),
        ({"min_failures": 0}, "min_failures is 0"),
        ({"device_deadline_seconds": 0.0}, "device_deadline_seconds"),
    ],
)
def test_bad_plan_is_refused(plan, fault):
    """A plan that could not end or is contradictory is an error that names the field."""
    with pytest.raises(SettingsError, match=fault):
        RolloutPlan(**plan)


@pytest.mark.parametrize(
    ("share", "devices", "limit"), [(0.1, 1, 1), (0.1, 3, 1), (0.5, 3, 2), (0.1, 100, 10), (1, 7, 7)]
)
def test_wave_limit_is_a_share_but_at_least_one(share, devices, limit):
    """Shares round up, so that the first wave of a small fleet is one device."""
    assert Wave(share=share).limit(devices) == limit


# --- whatever happens

sights = st.sampled_from(
    [
        idle(OLD),
        idle(NEW),
        refused(1.0),
        refused(2.0),
        DeviceStatus(digest=""),
        DeviceStatus(digest=NEW),
        DeviceStatus(digest=NEW, running=Running(digest=NEW, state="TESTING")),
    ]
)
surveys = st.builds(Surveyed, st.dictionaries(st.sampled_from([f"d-{i}" for i in range(8)]), sights))
moves = st.lists(
    st.tuples(st.one_of(surveys, surveys, surveys, st.sampled_from(EVENTS)), st.floats(0, 400)), max_size=30
)
plans = st.builds(
    RolloutPlan,
    waves=st.sampled_from([DEFAULT_WAVES, (Wave(share=1.0),), (Wave(count=1), Wave(count=3), Wave(share=1.0))]),
    success_threshold=st.floats(0, 1),
    error_threshold=st.floats(0, 1),
    min_failures=st.integers(1, 3),
)


@settings(max_examples=300, deadline=None)
@given(moves, plans)
def test_invariants(moves, plan):
    """No device is assigned twice, none beyond the wave, none while paused; abort reaches every device in flight."""
    now, rollout = 1000.0, Rollout(id=3, model="m", version="1.0.0", plan=plan)
    assigned = set()
    for event, passed in moves:
        now += passed
        if (rollout.state, type(event)) not in m.TABLE:
            continue
        result = step(rollout, event, now)
        after = result.state
        newly = [effect.device for effect in result.effects if isinstance(effect, Assign)]
        assert len(newly) == len(set(newly))
        assert not assigned & set(newly)
        assigned |= set(newly)
        eligible = [p for p in after.devices.values() if p.state is not DeviceState.SKIPPED]
        if newly:
            assert after.state is RolloutState.RUNNING
            assert sum(p.assigned_at > 0 for p in eligible) <= plan.waves[after.wave].limit(len(eligible))
        assert after.wave >= rollout.wave
        in_flight = {n for n, p in rollout.devices.items() if p.state in (DeviceState.ASSIGNED, DeviceState.FAILED)}
        if isinstance(event, Aborted):
            assert {effect.device for effect in result.effects} == in_flight
        if after.state is RolloutState.FINISHED:
            states = {p.state for p in after.devices.values()}
            assert states <= {DeviceState.SUCCEEDED, DeviceState.FAILED, DeviceState.SKIPPED}
        if after.state is RolloutState.RUNNING and any(p.state is DeviceState.ASSIGNED for p in after.devices.values()):
            assert result.wake_at is not None
        # Repeating what was just seen asks for nothing new.
        assert not step(after, Surveyed(), now).effects
        rollout = after

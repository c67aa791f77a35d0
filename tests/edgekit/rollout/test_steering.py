"""Approvals, canaries, another attempt, and single devices that leave a rollout: the machine's rules."""

import msgspec
import pytest

from edgekit.errors import RefusedError, SettingsError
from edgekit.mqtt.messages import Outcome, Running, Waiting
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.machine import step
from edgekit.rollout.plan import RolloutPlan, Wave, parse_waves
from edgekit.rollout.values import (
    Approved,
    Assign,
    Cancelled,
    DeviceState,
    DeviceStatus,
    Forced,
    Paused,
    Retried,
    Revert,
    Rollout,
    RolloutState,
    Started,
    Surveyed,
)

NEW, OLD = "a" * 64, "b" * 64
NAMES = [f"d-{number}" for number in range(4)]


class Story:
    """A rollout to four devices, and what it had them assigned or reverted."""

    def __init__(self, canaries=(), **plan):
        self.now = 1000.0
        plan["canaries"] = Cohort(filter="label.ring == 0") if canaries else None
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=RolloutPlan(**plan))
        self.effects = []
        self.take(Started())
        running = Running(digest=OLD)
        self.take(Surveyed({one: DeviceStatus(NEW, running, canary=one in canaries) for one in NAMES}))

    def take(self, event):
        result = step(self.state, event, self.now)
        self.state = result.state
        self.effects += result.effects

    def succeed(self, *names):
        self.take(Surveyed({name: DeviceStatus(NEW, Running(digest=NEW)) for name in names}))

    def fail(self, *names, at=5.0):
        outcome = Outcome(NEW, "1.1.0", "refused", "SelfTestError", "wrong", at)
        self.take(Surveyed({name: DeviceStatus(NEW, Running(digest=OLD), outcome) for name in names}))

    def devices(self, kind=Assign):
        return [effect.device for effect in self.effects if isinstance(effect, kind)]

    def states(self):
        return {name: progress.state.name for name, progress in self.state.devices.items()}


def test_a_rollout_waits_for_its_approval_before_the_start():
    """One approval is enough for all waves, and nobody is assigned before."""
    story = Story(approval="start", waves=(Wave(count=1), Wave(share=1.0)))
    assert (story.devices(), story.state.awaits_approval) == ([], True)
    story.take(Approved())
    assert len(story.devices()) == 1
    with pytest.raises(RefusedError, match="no wave of rollout 7 waits"):
        story.take(Approved())
    story.succeed(*story.devices())
    assert len(story.devices()) == 4


def test_each_wave_waits_for_its_approval():
    """The next one asks again when the one before has succeeded."""
    story = Story(approval="waves", waves=(Wave(count=1), Wave(count=2), Wave(share=1.0)))
    for assigned in (1, 2, 4):
        assert story.state.awaits_approval
        story.take(Approved())
        assert not story.state.awaits_approval
        assert len(story.devices()) == assigned
        story.succeed(*story.devices())
    assert story.state.state is RolloutState.FINISHED


def test_devices_in_flight_keep_their_deadline_while_a_wave_waits():
    """Silence is a failure, also while an operator thinks."""
    story = Story(
        approval="waves", waves=(Wave(count=2), Wave(share=1.0)), success_threshold=0.5, device_deadline_seconds=60.0
    )
    story.take(Approved())
    story.succeed(story.devices()[0])
    assert story.state.awaits_approval
    story.now += 61
    story.take(Surveyed())
    assert story.state.state is RolloutState.PAUSED


def test_a_canary_that_is_not_reached_gives_its_place_to_no_other_device():
    """One waits for too long: the other one decides, and until then no device beside them has the bundle."""
    story = Story(canaries=("d-1", "d-3"), waves=(Wave(count=2), Wave(share=1.0)), max_wait_seconds=100.0)
    assert sorted(story.devices()) == ["d-1", "d-3"]
    story.take(Surveyed({"d-1": DeviceStatus(NEW, Running(digest=OLD, waiting=Waiting("metered", 1.0, NEW)))}))
    story.now += 200.0
    story.take(Surveyed())
    assert story.states()["d-1"] == "NOT_REACHED"
    assert len(story.devices()) == 2
    story.succeed("d-3")
    assert sorted(story.devices()) == NAMES


def test_canaries_that_have_left_give_their_place_to_other_devices():
    """No wave begins that no device has shown."""
    story = Story(canaries=("d-2",), waves=(Wave(count=1), Wave(share=1.0)))
    story.take(Cancelled("d-2"))
    assert len(story.devices()) == 2


def test_canaries_come_first():
    """Whatever the order of the waves would be."""
    for canary in NAMES:
        story = Story(canaries=(canary,), waves=(Wave(count=1), Wave(share=1.0)))
        assert story.devices() == [canary]


def test_another_attempt_is_made_where_it_failed():
    """The old failure does not count again, a new one does; what succeeded is left alone."""
    story = Story(waves=(Wave(share=1.0),), error_threshold=0.0)
    story.succeed("d-0", "d-1", "d-2")
    story.fail("d-3")
    assert story.state.state is RolloutState.PAUSED
    story.effects.clear()
    story.take(Retried())
    assert story.devices() == ["d-3"]
    story.fail("d-3")
    assert story.state.state is RolloutState.RUNNING
    story.fail("d-3", at=6.0)
    assert story.state.state is RolloutState.PAUSED
    story.take(Retried())
    story.succeed("d-3")
    assert story.state.state is RolloutState.FINISHED


def test_another_attempt_needs_a_failure_and_a_rollout_that_has_not_ended():
    """An ended one stays ended; the advice is to start it again."""
    story = Story(waves=(Wave(share=1.0),), error_threshold=0.5, success_threshold=0.5)
    with pytest.raises(RefusedError, match="no device of rollout 7 has failed"):
        story.take(Retried())
    story.succeed("d-0", "d-1", "d-2")
    story.fail("d-3")
    assert story.state.state is RolloutState.FINISHED
    with pytest.raises(RefusedError, match="is FINISHED and cannot be retried") as caught:
        story.take(Retried())
    assert "edgekit rollout start digits 1.1.0" in caught.value.advice


def test_one_device_leaves_the_rollout():
    """In flight it gets its earlier assignment back; later reports change nothing; the others go on."""
    story = Story(waves=(Wave(count=2), Wave(share=1.0)))
    first, second = story.devices()
    story.take(Cancelled(first))
    assert story.devices(Revert) == [first]
    story.fail(first)
    story.succeed(second)
    pending = next(name for name, state in story.states().items() if state == "TOLD" or state == "ASSIGNED")
    story.take(Cancelled(pending))
    story.succeed(*(name for name, state in story.states().items() if state == "ASSIGNED"))
    assert story.state.state is RolloutState.FINISHED
    assert sorted(story.states().values()) == ["CANCELLED", "CANCELLED", "SUCCEEDED", "SUCCEEDED"]
    assert story.state.devices[first].reason == "cancelled by an operator"


def test_only_devices_of_the_rollout_can_leave_it():
    """Not strangers, not twice, and not after success."""
    story = Story(waves=(Wave(share=1.0),))
    story.succeed("d-0")
    for device, says in (("x", "not in rollout 7"), ("d-0", "has succeeded")):
        with pytest.raises(RefusedError, match=says):
            story.take(Cancelled(device))
    story.take(Paused())
    story.take(Cancelled("d-1"))
    assert story.state.state is RolloutState.PAUSED
    with pytest.raises(RefusedError, match="is cancelled in rollout 7 already"):
        story.take(Cancelled("d-1"))


def test_a_device_that_was_never_assigned_leaves_without_a_trace():
    """There is nothing to give back."""
    story = Story(waves=(Wave(count=1), Wave(share=1.0)))
    pending = next(name for name, progress in story.state.devices.items() if progress.state is DeviceState.PENDING)
    story.take(Cancelled(pending))
    assert story.devices(Revert) == []


def test_a_plan_names_a_known_approval():
    """Anything else is refused when the plan is made."""
    with pytest.raises(SettingsError, match="approval is 'never'"):
        msgspec.structs.replace(RolloutPlan(), approval="never")


def test_force_assigns_again_where_the_bundle_is_not_yet():
    """Devices on their way and those not reached get it without the condition; a second force has nothing to do."""
    story = Story(consent=True, waves=(Wave(count=2), Wave(share=1.0)), max_wait_seconds=50.0)
    first, second = story.devices()
    waiting = Waiting("consent", 1.0, NEW)
    running = Running(digest=OLD, waiting=waiting)
    story.take(Surveyed({first: DeviceStatus(NEW, running)}))
    assert story.states()[first] == "WAITING"
    story.succeed(second)
    story.effects = []
    story.take(Forced())
    assert first in story.devices()
    assert second not in story.devices()
    assert not story.state.plan.consent
    with pytest.raises(RefusedError, match="no device of rollout 7 waits until its user agrees"):
        story.take(Forced())


def test_force_tries_again_where_no_user_answered_in_time():
    """A device that waited for too long was not reached; it gets the assignment and a full deadline."""
    story = Story(consent=True, max_wait_seconds=50.0)
    (first,) = story.devices()
    story.take(Surveyed({first: DeviceStatus(NEW, Running(digest=OLD, waiting=Waiting("consent", 1.0, NEW)))}))
    story.now += 51.0
    story.take(Surveyed({}))
    assert story.states()[first] == "NOT_REACHED"
    story.effects = []
    story.take(Forced())
    assert first in story.devices()
    assert story.state.devices[first].assigned_at == story.now


@pytest.mark.parametrize(
    ("text", "waves"),
    [
        ("1,5,100%", (Wave(count=1), Wave(count=5), Wave(share=1.0))),
        (" 10% , 100% ", (Wave(share=0.1), Wave(share=1.0))),
        (
            "label.ring == 0, name in (pi-1, pi-2), 50%,100%",
            (
                Wave(cohort=Cohort(filter="label.ring == 0")),
                Wave(cohort=Cohort(filter="name in (pi-1, pi-2)")),
                Wave(share=0.5),
                Wave(share=1.0),
            ),
        ),
        (
            "label.site == 'a, b', group(canaries),100%",
            (
                Wave(cohort=Cohort(filter="label.site == 'a, b'")),
                Wave(cohort=Cohort(filter="group(canaries)")),
                Wave(share=1.0),
            ),
        ),
    ],
)
def test_waves_are_sizes_or_filters(text, waves):
    """Commas in brackets and in quotes belong to the filter."""
    assert parse_waves(text) == waves
    assert parse_waves(",".join(wave.text for wave in waves)) == waves


@pytest.mark.parametrize(
    "text", ["ten,100%", "0,100%", "10%,,x", "1.5,100%", "", "nan%,100%", "(", "10%,label.ring == 0,100%"]
)
def test_waves_that_cannot_be_read_are_refused(text):
    """Also a filter after a size, and nothing at all."""
    with pytest.raises(SettingsError, match=r"wave"):
        RolloutPlan(waves=parse_waves(text))


def test_waves_that_are_filters_come_in_their_order():
    """Then all others; a canary comes before them."""
    plan = RolloutPlan(
        waves=(
            Wave(count=1),
            Wave(count=2, cohort=Cohort(filter="label.ring == 0")),
            Wave(count=3, cohort=Cohort(filter="label.ring == 1")),
            Wave(share=1.0),
        )
    )
    rollout, order = Rollout(id=7, model="digits", version="1.1.0", plan=plan), []
    rollout = step(rollout, Started(), 1.0).state
    ranks = {"d-0": (False, 1), "d-1": (False, None), "d-2": (True, None), "d-3": (False, 0)}
    found = {name: DeviceStatus(NEW, Running(digest=OLD), canary=c, chosen=w) for name, (c, w) in ranks.items()}
    for _ in range(5):
        result = step(rollout, Surveyed(found), 1.0)
        rollout = result.state
        order += [effect.device for effect in result.effects]
        found = {name: DeviceStatus(NEW, Running(digest=NEW)) for name in order}
    assert order == ["d-2", "d-3", "d-0", "d-1"]

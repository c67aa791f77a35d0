"""Gates as people write them, pairs of observations, and gates in the rollout machine."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import SettingsError
from edgekit.mqtt.messages import Behaviour, Running
from edgekit.rollout.gate_observed import Counted
from edgekit.rollout.gate_pairs import MAX_DRAWN, Pairs, paired
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.gates import Gate, parse_gate
from edgekit.rollout.machine import step
from edgekit.rollout.plan import RolloutPlan, Wave
from edgekit.rollout.values import (
    Assign,
    DeviceProgress,
    DeviceState,
    DeviceStatus,
    Keep,
    Resumed,
    Return,
    Rollout,
    RolloutState,
    Started,
    Surveyed,
)

NEW, OLD = "a" * 64, "b" * 64
GOOD, BAD = Behaviour(outcomes=200, good=180), Behaviour(outcomes=200, good=40)
NAMES = [f"d-{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("outcome", Gate("outcome")),
        ("outcome drop <= 0.02", Gate("outcome", margin=0.02)),
        (" errors rise<=0.5 ", Gate("errors", margin=0.5)),
        ("latency 50ms", Gate("latency", limit_ms=50)),
        ("latency 50 ms rise <= 0.1", Gate("latency", limit_ms=50, margin=0.1)),
        ("fallback", Gate("fallback")),
    ],
)
def test_a_gate_is_read(text, gate):
    """And what is printed is read again."""
    assert parse_gate(text) == gate
    assert parse_gate(gate.text) == gate


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed", "not 'speed'"),
        ("outcome rise <= 0.1", "gets worse when it drops"),
        ("outcome drop <= 1", "expected less"),
        ("outcome drop <= nan", "margin of a gate is nan"),
        ("outcome drop <= x", "'x' is no share"),
        ("outcome drop <= -0.1", "-0.1"),
        ("latency", "without a limit"),
        ("latency 60ms", "of 60 ms"),
        ("errors 50ms", "only a latency gate"),
        ("outcome < 0.1", "is no gate"),
        ("", "is no gate"),
    ],
)
def test_what_is_no_gate_says_why(text, says):
    """With an example."""
    with pytest.raises(SettingsError, match="gate") as caught:
        parse_gate(text)
    assert says in str(caught.value)
    assert "--gate" in caught.value.advice


def test_a_plan_refuses_the_same_gate_twice():
    """Two margins for one share contradict each other."""
    with pytest.raises(SettingsError, match="each of another kind"):
        RolloutPlan(gates=(parse_gate("outcome"), parse_gate("outcome drop <= 0.1")))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), max_size=8),
)
def test_each_observation_is_in_one_pair(reports):
    """Whatever order reports come in: no more pairs than observations of each model, and the good ones add up."""
    pairs, before, after = Pairs(), [0, 0], [0, 0]
    for good, bad, new_good, new_bad in reports:
        before = [before[0] + good, before[1] + good + bad]
        after = [after[0] + new_good, after[1] + new_good + new_bad]
        grown = paired(pairs, tuple(before), tuple(after), "seed")
        assert grown.count == min(before[1], after[1], pairs.count + MAX_DRAWN)
        assert min(grown.worse - pairs.worse, grown.equal - pairs.equal, grown.better - pairs.better) >= 0
        assert grown.worse - grown.better == grown.baseline_good - grown.candidate_good
        assert grown.baseline_good <= before[0]
        assert grown.candidate_good <= after[0]
        assert grown == paired(pairs, tuple(before), tuple(after), "seed")
        pairs = grown


def test_contradictory_counts_change_only_the_evidence_of_their_device():
    """More good observations than observations, fewer than before, negative numbers: pairs stay whole."""
    pairs = paired(Pairs(0, 5, 0, 5, 5), (-3, 20), (900, 20), "seed")
    assert pairs.count == 20
    assert min(pairs.worse, pairs.equal, pairs.better) >= 0


def test_counts_go_on_after_a_restart_of_the_agent():
    """Counts that are lower than before have begun anew."""
    counted = Counted().after(Behaviour(requests=10, outcomes=5, good=4, slower=(3, 1)))
    counted = counted.after(Behaviour(requests=12, outcomes=5, good=4, slower=(4, 1)))
    counted = counted.after(Behaviour(requests=3, outcomes=1, good=1, slower=(1, 0)))
    assert counted.total == Behaviour(requests=15, outcomes=6, good=5, slower=(5, 1))


class Story:
    """A rollout with an outcome gate to devices that run the old model."""

    def __init__(self, **plan):
        self.now = 1000.0
        plan = {"gates": (parse_gate("outcome"),), "soak_seconds": 100.0, **plan}
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=RolloutPlan(**plan))
        self.effects, self.wake_at = [], None
        self.take(Started())
        self.see(OLD, {OLD: GOOD})

    def take(self, event):
        result = step(self.state, event, self.now)
        self.state, self.wake_at = result.state, result.wake_at
        self.effects += result.effects

    def see(self, digest, behaviour, names=NAMES):
        running = Running(digest=digest, behaviour=behaviour)
        self.take(Surveyed({name: DeviceStatus(digest=NEW, running=running) for name in names}))


def test_several_gates_together_stop_an_equal_model_as_rarely_as_one():
    """Each of two gates needs twice the evidence, so that their chances of a false stop add up to that of one."""
    (alone,) = gate_views(Story().state)
    views = gate_views(Story(gates=(parse_gate("outcome"), parse_gate("errors"))).state)
    assert [view.limit for view in views] == [2 * alone.limit, 2 * alone.limit]


def test_a_model_that_behaves_worse_pauses_the_rollout():
    """In its first wave; the reason has both shares, and resuming accepts the evidence."""
    story = Story(waves=(Wave(count=3), Wave(share=1.0)))
    first = [effect.device for effect in story.effects]
    story.see(OLD, {OLD: GOOD}, first)
    story.see(NEW, {OLD: GOOD, NEW: BAD}, first)
    assert story.state.state is RolloutState.PAUSED
    assert story.state.stopped_itself
    assert "good outcomes fell from 90.0% to 20.0% (600 pairs of 3 devices" in story.state.reason
    (view,) = gate_views(story.state)
    assert view.failed
    story.take(Resumed())
    assert story.state.state is RolloutState.RUNNING
    assert gate_views(story.state)[0].accepted
    story.now += 101
    story.take(Surveyed())
    assert len([effect for effect in story.effects if isinstance(effect, Assign)]) == 6


def test_an_equal_model_goes_through():
    """Each wave is watched for the time of its soak, and then the rollout finishes."""
    story = Story(waves=(Wave(count=3), Wave(share=1.0)))
    first = [effect.device for effect in story.effects]
    story.see(NEW, {OLD: GOOD, NEW: GOOD}, first)
    assert (story.state.wave, story.wake_at) == (0, story.now + 100)
    story.now += 99
    story.take(Surveyed())
    assert story.state.wave == 0
    story.now += 1
    story.take(Surveyed())
    assert story.state.wave == 1
    story.see(NEW, {OLD: GOOD, NEW: GOOD})
    assert story.state.state is RolloutState.RUNNING
    story.now += 100
    story.take(Surveyed())
    assert story.state.state is RolloutState.FINISHED


def test_the_cohort_returns_when_the_plan_says_so():
    """Every device that has the assignment gets its earlier one back, also those that had succeeded."""
    story = Story(on_failure="return")
    first = [effect.device for effect in story.effects]
    story.see(NEW, {OLD: GOOD, NEW: GOOD}, first)
    story.now += 100
    story.take(Surveyed())
    assigned = [effect.device for effect in story.effects if isinstance(effect, Assign)]
    story.see(OLD, {OLD: GOOD}, assigned)
    story.see(NEW, {OLD: GOOD, NEW: BAD}, assigned[1:])
    assert story.state.state is RolloutState.ABORTED
    assert sorted(effect.device for effect in story.effects if isinstance(effect, Return)) == sorted(assigned)
    story.see(NEW, {OLD: GOOD, NEW: BAD}, assigned[:1])
    assert not [effect for effect in story.effects if isinstance(effect, Keep)]
    story.see(OLD, {OLD: GOOD, NEW: BAD}, assigned)
    assert {story.state.devices[name].state for name in assigned} == {DeviceState.RETURNED}


def test_errors_past_the_limit_return_the_cohort_too():
    """The error threshold does what the plan says, without any gate."""
    story = Story(gates=(), on_failure="return", soak_seconds=0.0, device_deadline_seconds=60.0)
    story.now += 61
    story.take(Surveyed())
    assert story.state.state is RolloutState.ABORTED
    assert [type(effect) for effect in story.effects] == [Assign, Return]


def test_a_device_without_an_earlier_model_is_in_no_pair():
    """It has nothing to be compared with."""
    story = Story()
    story.see(NEW, {NEW: BAD})
    assert gate_views(story.state)[0].pairs == 0


def test_progress_of_the_last_release_is_read():
    """Without observations."""
    assert msgspec.json.decode(b'{"state": "TOLD", "digest": "x"}', type=DeviceProgress).observed is None

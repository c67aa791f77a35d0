"""The control cohort of gates: who is compared with whom, in the rollout machine; each observation counts once."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import SettingsError
from edgekit.mqtt.messages import Behaviour, Running
from edgekit.rollout.control_cohort import SAME_SECONDS
from edgekit.rollout.gate_evidence import STEPS
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.gates import parse_gate
from edgekit.rollout.machine import step
from edgekit.rollout.plan import COHORT, RolloutPlan, Wave
from edgekit.rollout.progress import gate_text
from edgekit.rollout.values import Assign, DeviceState, DeviceStatus, Rollout, RolloutState, Started, Surveyed

NEW, OLD = "a" * 64, "b" * 64
NAMES = [f"d-{number:02}" for number in range(24)]
OUTCOME = parse_gate("outcome")


class World:
    """A fleet that reports every ten minutes, and the rollout machine with an outcome gate."""

    def __init__(self, *, seed=1, first=6, names=NAMES, liar="", silent=(), **plan):
        self.draws, self.now, self.names = random.Random(seed), 1_000_000.0, names
        self.counts = {name: {OLD: Behaviour(outcomes=2000, good=1800)} for name in names}
        if liar:
            self.counts[liar] = {OLD: Behaviour(outcomes=2000, good=0)}
        waves = (Wave(count=first), Wave(share=1.0))
        options = {"gates": (OUTCOME,), "soak_seconds": 86_400.0, "waves": waves, "control": COHORT, **plan}
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=RolloutPlan(**options))
        self.new = set()
        self.take(Started())
        self.report(silent=silent)

    def take(self, event):
        result = step(self.state, event, self.now)
        self.state = result.state
        self.new |= {effect.device for effect in result.effects if isinstance(effect, Assign)}

    def answer(self, name, digest, count, share):
        before = self.counts[name].get(digest, Behaviour())
        good = sum(self.draws.random() < share for _ in range(count))
        self.counts[name][digest] = Behaviour(outcomes=before.outcomes + count, good=before.good + good)

    def report(self, names=None, silent=()):
        reports = {}
        for name in self.names if names is None else names:
            runs = NEW if name in self.new else OLD
            running = Running(digest=runs, behaviour={} if name in silent else dict(self.counts[name]))
            reports[name] = DeviceStatus(digest=NEW, running=running)
        self.take(Surveyed(reports))

    def go_on(self, rounds, *, old, new, count=10):
        """Let every device answer and report, `rounds` times; ends early where the rollout stops."""
        for _ in range(rounds):
            self.now += 600
            for name in self.names:
                is_new = name in self.new
                self.answer(name, NEW if is_new else OLD, count, new if is_new else old)
            self.report()
            if self.state.state is not RolloutState.RUNNING:
                return

    @property
    def view(self):
        (view,) = gate_views(self.state)
        return view


def test_a_change_of_the_world_stops_no_rollout():
    """Good outcomes fall for all devices: the control cohort shows it. Compared with the past alone, the gate stops."""
    world = World()
    world.go_on(40, old=0.75, new=0.75)
    assert world.state.state is RolloutState.RUNNING
    assert world.view.control.devices == 18
    assert world.view.control.candidate == pytest.approx(0.75, abs=0.03)
    assert world.view.pairs > 2000
    alone = World(control="previous")
    alone.go_on(40, old=0.75, new=0.75)
    assert alone.state.state is RolloutState.PAUSED


def test_a_better_world_hides_no_worse_model():
    """The new model keeps its share while the old one's rises; the reason names both cohorts."""
    world = World()
    world.go_on(40, old=0.98, new=0.88)
    assert world.state.state is RolloutState.PAUSED
    assert "now in the control cohort of 18 devices" in world.state.reason
    assert "6 devices, evidence" in world.state.reason
    alone = World(control="previous")
    alone.go_on(40, old=0.98, new=0.90)
    assert alone.state.state is RolloutState.RUNNING


def test_a_worse_model_pauses_the_rollout_in_its_first_wave():
    """Before any other device got it."""
    world = World()
    world.go_on(40, old=0.9, new=0.6)
    assert world.state.state is RolloutState.PAUSED
    assert len(world.new) == 6
    assert "good outcomes fell from" in world.state.reason


def test_the_last_wave_says_that_it_has_no_control_cohort():
    """As a decision, once; from then on each device is compared with its own earlier answers alone, and can fail."""
    world = World(soak_seconds=3000.0)
    world.go_on(8, old=0.9, new=0.9)
    assert len(world.new) == len(NAMES)
    assert world.state.state is RolloutState.RUNNING
    (said,) = [one.reason for one in world.state.decisions if "no control cohort" in one.reason]
    assert "from wave 2 on: 0 devices of later waves run the old version" in said
    matched = world.view.pairs - world.view.control.alone
    assert matched > 0
    world.go_on(3, old=0.9, new=0.9)
    assert world.view.control.alone > 0
    assert world.view.pairs == matched + world.view.control.alone
    assert "pairs without a control cohort" in gate_text(world.view)
    assert len([one for one in world.state.decisions if "no control cohort" in one.reason]) == 1
    worse = World(soak_seconds=3000.0)
    worse.go_on(8, old=0.9, new=0.9)
    worse.go_on(5, old=0.9, new=0.5)
    assert worse.state.state is RolloutState.PAUSED
    assert "pairs without a control cohort" in worse.state.reason


def test_a_fleet_that_is_too_small_says_so_at_the_start():
    """Four devices on the old version are no control cohort."""
    world = World(names=NAMES[:5], first=1)
    assert (
        "from wave 1 on: 4 devices of later waves run the old version and report, at least 5 must" in world.state.reason
    )
    assert world.state.state is RolloutState.RUNNING


def test_devices_that_report_nothing_are_no_control_cohort():
    """The rollout says so, and says when enough of them report."""
    world = World(silent=NAMES)
    assert "0 devices of later waves run the old version and report" in world.state.reason
    assert world.state.without_control
    world.report(NAMES[:12])
    assert world.state.reason.startswith("gates have a control cohort: ")
    assert not world.state.without_control
    assert len([one for one in world.state.decisions if "control cohort" in one.reason]) == 2


def test_observations_of_other_hours_are_not_compared():
    """What the control cohort answered in the night is no measure for the morning."""
    world = World()
    controls = [name for name in NAMES if name not in world.new]
    for name in controls:
        world.answer(name, OLD, 50, 0.9)
    world.now += 600
    world.report(controls)
    world.now += SAME_SECONDS + 1
    for name in world.new:
        world.answer(name, NEW, 50, 0.5)
    world.report(sorted(world.new))
    assert world.view.pairs == 0
    assert "needs five that report" in gate_text(world.view)


def test_a_control_device_that_changes_otherwise_is_left_out():
    """A device whose share rises from nothing would make every new model look worse."""
    honest = World()
    liar = next(name for name in NAMES if name not in honest.new)
    world = World(liar=liar)
    assert liar not in world.new
    for _ in range(30):
        world.now += 600
        for name in NAMES:
            world.answer(name, NEW if name in world.new else OLD, 10, 1.0 if name == liar else 0.9)
        world.report()
    control = {name: one.observed.beside[OUTCOME.text].control.count
               for name, one in world.state.devices.items() if name not in world.new}  # fmt: skip
    assert control.pop(liar) < 10 < min(control.values())
    assert world.state.state is RolloutState.RUNNING


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 40), st.integers(0, 40)), max_size=60))
def test_each_observation_is_in_one_comparison(reports):
    """Whatever devices report, in whatever order, and also contradictory counts."""
    world = World(soak_seconds=1e6)
    for name, count, good in reports:
        world.now += 60
        digest = NEW if name in world.new else OLD
        before = world.counts[name].get(digest, Behaviour())
        world.counts[name][digest] = Behaviour(outcomes=before.outcomes + count, good=before.good + good)
        world.report([name])
    for name, progress in world.state.devices.items():
        seen = progress.observed
        for one in seen.beside.values():
            assert one.control.count + one.own.count <= 2000
            assert one.control.count <= 1000
            assert one.own.count <= seen.candidate.total.outcomes
            assert one.control.count <= seen.baseline.total.outcomes - 2000
            assert sum(one.steps) == one.own.count
            assert len(one.steps) in (0, STEPS)
            assert min(one.own.worse, one.own.equal, one.own.better, one.control.equal) >= 0
        assert msgspec.json.decode(msgspec.json.encode(progress), type=type(progress)) == progress
        assert (name in world.new) == (progress.state is not DeviceState.PENDING)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"control": "both", "gates": (OUTCOME,)}, "control is 'both', expected previous or cohort"),
        ({"control": COHORT}, "needs a gate"),
        ({"control": COHORT, "gates": (OUTCOME,), "waves": (Wave(share=1.0),)}, "needs a wave before that of 100%"),
    ],
)
def test_plans_that_could_have_no_control_cohort_are_refused(plan, says):
    """Before anything starts."""
    with pytest.raises(SettingsError, match=says):
        RolloutPlan(**plan)

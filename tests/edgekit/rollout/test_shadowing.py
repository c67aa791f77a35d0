"""Rollouts in which devices compare the new model with their active one before they activate it."""

import msgspec
import numpy as np
import pytest

from edgekit.errors import SettingsError
from edgekit.mqtt.messages import Behaviour, Running, Shadow, Waiting
from edgekit.rollout.agent_needs import can_shadow
from edgekit.rollout.document import document
from edgekit.rollout.gate_evidence import LIMIT, weigh_share
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.gates import Gate, parse_gate
from edgekit.rollout.machine import step
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.progress import gate_text
from edgekit.rollout.shadowing import shadow_text
from edgekit.rollout.values import (
    Aborted,
    Assign,
    DeviceProgress,
    DeviceState,
    DeviceStatus,
    Resumed,
    Retried,
    Return,
    Revert,
    Rollout,
    RolloutState,
    Started,
    Surveyed,
)

NEW, OLD = "a" * 64, "b" * 64
AGREEMENT = (parse_gate("agreement"),)
OF_REPORT = 10  # inputs, in the simulations


class Story:
    """A rollout with a comparison on 100 inputs; the devices run the old model."""

    def __init__(self, devices=3, waves="100%", old_agents=(), **plan):
        self.now = 1000.0
        plan = {"shadow": 100, "shadow_seconds": 3600.0, "gates": AGREEMENT, **plan}
        plan = RolloutPlan(parse_waves(waves), **plan)
        self.state = Rollout(id=7, model="digits", version="1.1.0", plan=plan)
        self.effects, self.old_agents = [], old_agents
        self.take(Started())
        self.see(dict.fromkeys([f"d-{number}" for number in range(devices)]))

    def take(self, event):
        result = step(self.state, event, self.now)
        self.state = result.state
        self.effects += result.effects

    def see(self, shadows, digest=OLD, waiting=None):
        """Devices report: a comparison, or None for none."""
        found = {}
        for name, shadow in shadows.items():
            running = Running(digest=digest, shadow=shadow, waiting=waiting)
            found[name] = DeviceStatus(digest=NEW, running=running, can_shadow=name not in self.old_agents)
        self.take(Surveyed(found))

    def assigned(self, *, shadowing):
        """Devices that have the assignment and compare, or may activate the bundle."""
        flying = {name: one for name, one in self.state.devices.items() if one.state is DeviceState.ASSIGNED}
        return [name for name, one in sorted(flying.items()) if one.shadowing is shadowing]


def said(compared=0, differed=0, ended="", digest=NEW):
    return Shadow(digest[:12], compared, differed, 0, 0, ended)


def test_devices_are_let_go_when_all_of_their_wave_have_compared():
    """Not before, and then by an assignment without the comparison; their deadline begins anew."""
    story = Story()
    assert story.assigned(shadowing=True) == ["d-0", "d-1", "d-2"]
    story.see({"d-0": said(100, 2, "complete"), "d-1": said(40, 1)})
    assert story.assigned(shadowing=False) == []
    story.now += 500
    story.see({"d-1": said(100, 2, "complete"), "d-2": said(7, 0, "time")})
    assert story.assigned(shadowing=False) == ["d-0", "d-1", "d-2"]
    assert [type(one) for one in story.effects] == [Assign] * 6
    assert story.state.devices["d-0"].assigned_at == story.now
    story.see(dict.fromkeys(story.state.devices, None), digest=NEW)
    assert story.state.state is RolloutState.FINISHED


def test_the_next_wave_compares_too():
    """Each device on inputs of its own."""
    story = Story(waves="1,100%")
    (first,) = story.assigned(shadowing=True)
    story.see({first: said(100, 0, "complete")})
    story.see({first: None}, digest=NEW)
    assert len(story.assigned(shadowing=True)) == 2


def test_a_model_that_disagrees_everywhere_is_activated_nowhere():
    """Whether the devices alone show it or together, the rollout stops before any of them may activate it."""
    story = Story(on_failure="return")
    story.see({name: said(30, 20) for name in story.state.devices})
    assert story.state.state is RolloutState.ABORTED
    assert "failed" in story.state.reason
    assert not any(one.shadowing is False for one in story.state.devices.values())
    assert {one.device for one in story.effects if isinstance(one, Revert | Return)} == set(story.state.devices)


def test_many_devices_together_show_what_none_of_them_could():
    """One answer in eight differs, where one in twenty may."""
    story = Story(devices=30)
    story.see({name: said(20, 2 + (number % 3 == 0), "") for number, name in enumerate(story.state.devices)})
    assert story.state.state is RolloutState.PAUSED
    assert "% of the answers agree with the previous model's (600 inputs of 30 devices" in story.state.reason
    story.see({name: said(100, 12, "complete") for name in story.state.devices})
    assert story.assigned(shadowing=False) == []
    story.take(Resumed())
    assert len(story.assigned(shadowing=False)) == 30


@pytest.mark.parametrize("many", [10**6, 2**63, 2**64 - 1])
def test_a_device_counts_for_no_more_inputs_than_the_plan_has(many):
    """One that claims a million equal answers hides no worse model, and no number stops the rollout's surveys."""
    story = Story(devices=30)
    story.see({"d-0": said(many, 0, "complete")})
    assert story.state.devices["d-0"].shadow.compared == 100
    story.see({name: said(60, 7) for name in story.state.devices if name != "d-0"})
    assert story.state.state is RolloutState.PAUSED
    assert "answers agree with the previous model's" in story.state.reason


def test_one_device_that_disagrees_fails_alone():
    """It keeps what it runs; the others go on. A retry is an operator's decision to activate it there too."""
    story = Story(devices=30)
    story.see({"d-3": said(100, 90, "complete")})
    assert story.state.devices["d-3"].state is DeviceState.FAILED
    assert story.state.devices["d-3"].reason == "its answers differ from the active model's on 90 of 100 inputs"
    assert Revert("d-3") in story.effects
    others = [name for name in story.state.devices if name != "d-3"]
    story.see({name: said(100, 3, "complete") for name in others})
    assert len(story.assigned(shadowing=False)) == 29
    story.take(Retried())
    assert story.assigned(shadowing=False) == sorted(story.state.devices)


def test_a_comparison_of_nothing_pauses_with_the_reasons():
    """An agreement gate cannot say yes to what nobody has seen; an operator can."""
    story = Story()
    story.see({"d-0": said(ended="time"), "d-1": said(ended="memory"), "d-2": said(ended="no-model")})
    assert story.state.state is RolloutState.PAUSED
    for reason in ("no request came (1)", "both models do not fit into its memory (1)", "no model to compare with (1)"):
        assert reason in story.state.reason
    story.take(Resumed())
    assert len(story.assigned(shadowing=False)) == 3


def test_without_a_gate_a_comparison_only_informs():
    """It stops nothing."""
    story = Story(gates=())
    story.see({name: said(100, 100, "complete") for name in story.state.devices})
    assert len(story.assigned(shadowing=False)) == 3


def test_devices_with_an_older_agent_come_last():
    """They would activate it at once: after those that compare, never beside them."""
    story = Story(old_agents=("d-0", "d-1"))
    assert story.assigned(shadowing=True) == ["d-2"]
    assert story.assigned(shadowing=False) == []
    story.see({"d-2": said(100, 0, "complete")})
    assert story.assigned(shadowing=False) == ["d-0", "d-1", "d-2"]
    assert [can_shadow(version) for version in ("", "0.1.0", "0.2.0")] == [False, False, True]


def test_a_silent_device_has_the_time_of_the_comparison_and_its_deadline():
    """One that has ended its comparison waits without a deadline, and a waiting one does not hold up the others."""
    story = Story(device_deadline_seconds=600.0, error_threshold=1.0)
    story.see({"d-0": said(100, 1, "complete")})
    story.see({"d-1": None}, waiting=Waiting("quiet-hours", digest=NEW))
    story.now += 4199
    story.take(Surveyed())
    assert story.assigned(shadowing=True) == ["d-0", "d-2"]
    story.now += 1
    story.take(Surveyed())
    assert story.state.devices["d-2"].state is DeviceState.FAILED
    assert story.assigned(shadowing=False) == ["d-0"]
    story.see({"d-1": said(5)})
    assert story.assigned(shadowing=True) == ["d-1"]


def test_an_abort_takes_back_a_comparison():
    """From every device."""
    story = Story()
    story.take(Aborted())
    assert {one.device for one in story.effects if isinstance(one, Revert)} == set(story.state.devices)


def test_reports_about_another_bundle_and_contradictions_change_nothing():
    """More differences than comparisons, negative counts, the comparison of an earlier rollout."""
    story = Story(devices=30)
    story.see({"d-0": said(100, 100, "complete", digest=OLD)})
    assert story.state.devices["d-0"].shadow is None
    story.see({"d-1": Shadow(NEW[:12], -5, 900, -1, -7, "x" * 900)})
    assert story.state.devices["d-1"].shadow == Shadow(NEW[:12], 0, 0, 0, 0, "x" * 16)


def test_a_comparison_of_an_earlier_rollout_does_not_count():
    """A device that has reported one of the same bundle compares anew; one that is comparing goes on."""
    story = Story(devices=0)
    before = {
        "d-0": Shadow(NEW[:12], 30, 0, 0, 0, "complete", 11),
        "d-1": Shadow(NEW[:12], 30, 0, 0, 0, "complete", 12),
    }
    story.see({"d-0": before["d-0"]})
    running = Running(digest=OLD, shadow=before["d-1"], state="SHADOWING")
    story.take(Surveyed({"d-1": DeviceStatus(NEW, running, can_shadow=True)}))
    assert story.assigned(shadowing=True) == ["d-0", "d-1"]
    story.see(before)
    assert story.state.devices["d-0"].shadow is None
    assert story.state.devices["d-1"].shadow.compared == 30
    story.see({"d-0": Shadow(NEW[:12], 30, 0, 0, 0, "complete", 13)})
    assert story.assigned(shadowing=False) == ["d-0", "d-1"]


def test_what_people_see():
    """Text of a device and of the gate, and the document of the API."""
    story = Story()
    story.see({"d-0": Shadow(NEW[:12], 40, 1, 0, 3, ""), "d-1": said(ended="memory")})
    plan, devices = story.state.plan, story.state.devices
    assert shadow_text(devices["d-0"], plan) == "compared 40 of 100 inputs, 1 differ, 3 left out"
    assert shadow_text(devices["d-1"], plan) == "cannot compare: both models do not fit into its memory"
    assert shadow_text(devices["d-2"], plan) == "compares 100 inputs"
    (view,) = gate_views(story.state)
    assert gate_text(view).startswith("gate 'agreement >= 0.95': 97.5% of the answers agree, 40 inputs of 1 device")
    described = msgspec.to_builtins(document(story.state, devices=True))["devices"]
    assert described["d-0"]["shadow"] == {"compared": 40, "differed": 1, "failed": 0, "dropped": 3, "ended": ""}
    assert "shadow" not in described["d-2"]


def test_progress_of_the_last_release_is_read():
    """Without a comparison."""
    progress = msgspec.json.decode(b'{"state": "TOLD", "digest": "x"}', type=DeviceProgress)
    assert (progress.shadowing, progress.shadow) == (False, None)


@pytest.mark.parametrize(
    ("text", "margin"), [("agreement", 0.05), ("agreement:0.9", 0.1), ("agreement >= 0.98", 0.02), ("agreement:1", 0.0)]
)
def test_an_agreement_gate_is_read(text, margin):
    """And what is printed is read again."""
    gate = parse_gate(text)
    assert gate == Gate("agreement", margin=margin)
    assert parse_gate(gate.text) == gate
    assert gate.good_of(Behaviour(requests=5, outcomes=5)) == (0, 0)


@pytest.mark.parametrize("text", ["agreement:0", "agreement:nan", "agreement:1.1", "agreement:x", "agreement drop"])
def test_what_is_no_agreement_gate_says_so(text):
    """With an example."""
    with pytest.raises(SettingsError) as caught:
        parse_gate(text)
    assert "--gate" in caught.value.advice


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"gates": AGREEMENT}, "needs --shadow"),
        ({"shadow": -1}, "shadow is -1"),
        ({"shadow": 10**9}, "expected 0 to 1000000"),
        ({"shadow": 5, "shadow_seconds": float("inf")}, "shadow_seconds"),
        ({"shadow": 5, "gates": (*AGREEMENT, parse_gate("agreement:0.9"))}, "each of another kind"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(plan, says):
    """Before anything starts."""
    with pytest.raises(SettingsError, match=says):
        RolloutPlan(**plan)


# --- the statistical promise


def stopped(share, *, margin=0.05, devices=50, liars=0, inputs=20, runs=2000, seed=1):
    """Share of the runs that the gate stops, watched after every report, and the inputs until then."""
    draws = np.random.default_rng(seed)
    differed, compared = (np.zeros((runs, devices), np.int64) for _ in range(2))
    rows, found = np.arange(runs), np.full(runs, np.inf)
    for report in range(devices * inputs // OF_REPORT):
        device = draws.integers(devices, size=runs)
        differs = np.where(device < liars, OF_REPORT, draws.binomial(OF_REPORT, share, size=runs))
        differed[rows, device] += differs
        compared[rows, device] += OF_REPORT
        value = weigh_share(differed, compared - differed, margin).value
        found = np.minimum(found, np.where(value >= LIMIT, OF_REPORT * (report + 1), np.inf))
    return float(np.isfinite(found).mean()), float(np.median(found))


def test_a_model_that_agrees_as_often_as_asked_is_rarely_stopped():
    """At most 5 % of 2,000 runs at the very limit, watched after every report, also with one of 50 devices lying."""
    assert stopped(0.05)[0] <= 0.05
    assert stopped(0.05, liars=1, seed=2)[0] <= 0.05


def test_a_model_that_disagrees_twice_as_often_is_stopped():
    """With 300 inputs of the whole fleet in the median run; one that disagrees on every second input with 30."""
    share, inputs = stopped(0.10, runs=500, seed=3)
    assert share >= 0.95
    assert inputs <= 400
    assert stopped(0.5, runs=500, inputs=10, seed=4)[1] <= 40

"""A device whose runtime is another version than those that its bundle was proven on, with a signed registry."""

import msgspec
import pytest

from device_agents.options import AgentTimings
from device_agents.storage.evidence import EvidenceFile
from device_agents.update import runtime_evidence
from device_agents.update.evidence_rules import Policy
from edgekit.bundle.evidence import parse_evidence
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import SelfTestError
from edgekit.mqtt import messages
from edgekit.registry import publish
from edgekit.registry.evidence import sign_evidence
from edgekit.trust.envelopes import open_envelope
from tests.simulators.bundles import write_bundle
from tests.simulators.device import TARGET, Desk, Device
from tests.simulators.transport import MemoryBroker

MADE, NEW = "onnxruntime 1.31.1", "onnxruntime 1.32.0"


@pytest.fixture
def runtime(monkeypatch):
    """The device's runtime; tests upgrade it."""
    versions = {"onnxruntime": MADE}
    monkeypatch.setattr(runtime_evidence.RuntimeEvidence.__init__, "__defaults__", (versions.get,))
    return versions


class World:
    def __init__(self, folder):
        self.folder = folder
        self.broker = MemoryBroker()
        self.desk = Desk(folder, self.broker)
        self.device = Device(folder, self.broker, self.desk.root)
        self.device.timings = AgentTimings(condition_survey_seconds=0.05, evidence_survey_seconds=0.05)
        self.manifests = {}

    def publish(self, version):
        bundle = write_bundle(self.folder / version, "digits", version, TARGET)
        path = bundle / MANIFEST_NAME
        made = msgspec.structs.replace(parse_manifest(path.read_bytes()), tools={"onnxruntime": "1.31.1"})
        path.write_bytes(made.canonical_bytes())
        self.manifests[version] = made
        return publish(self.desk.store, self.desk.repository, bundle).entry

    def sign(self, version, outcome, arch="aarch64"):
        entry = {"package": "onnxruntime", "version": "1.32.0", "arch": arch, "outcome": outcome, "against": MADE}
        sign_evidence(self.desk.store, self.desk.repository, self.manifests[version], outcome.encode(), **entry)

    def events(self, kind="runtime-unproven"):
        key = self.device.signer.public_key
        found = [open_envelope(payload, messages.Event, key) for payload in self.desk.said("event")]
        return [event for event in found if event.kind == kind]

    @property
    def unproven(self):
        return self.device.reported().facts.get("unproven", {})


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.desk.start()
    yield world
    await world.device.stop()


async def upgraded(world, runtime, policy=Policy.WARN):
    """The device has 1.0.0, made and installed with MADE; then its runtime is upgraded and the agent starts again."""
    world.desk.assign(world.publish("1.0.0"))
    await world.device.start()
    await world.device.settled("1.0.0")
    await world.device.stop()
    assert world.events() == []
    runtime["onnxruntime"] = NEW
    world.device.options = {"unproven_runtime": policy}
    world.device.inference.live.clear()


async def test_a_warning_names_both_versions_and_the_model_answers(world, runtime):
    """The default: the operator reads it in the facts and in an event."""
    await upgraded(world, runtime)
    await world.device.start()
    await world.device.until(lambda: world.events() and world.unproven == {"digits": NEW})
    (event,) = world.events()
    assert MADE in event.message
    assert event.detail["runtime"] == NEW
    assert event.detail["standing"] == "unproven"
    assert world.device.inference.live == {"digits": "1.0.0"}


async def test_wrong_golden_answers_after_a_start_are_reported(world, runtime):
    """The default lets the model answer, so the operator must hear of it; the files are whole."""
    await upgraded(world, runtime)
    world.device.inference.dying.add("1.0.0")
    await world.device.start()
    await world.device.until(lambda: world.events("self-test-failed"))
    assert world.events("self-test-failed")[0].model == "digits"
    assert world.events("slot-damaged") == []


async def test_evidence_that_is_signed_later_ends_the_doubt(world, runtime):
    """The device fetches it by itself, without an update, and keeps it for the next start."""
    await upgraded(world, runtime)
    await world.device.start()
    await world.device.until(lambda: world.unproven)
    world.sign("1.0.0", "equal")
    await world.device.until(lambda: not world.unproven)
    await world.device.stop()
    world.desk.silent = True
    await world.device.start()
    assert world.device.agent.evidence.facts == {}


async def test_evidence_of_another_architecture_does_not_count(world, runtime):
    """An x86-64 workstation says nothing about an ARM board."""
    await upgraded(world, runtime)
    world.sign("1.0.0", "equal", arch="x86_64")
    await world.device.start()
    await world.device.until(lambda: world.device.agent.evidence.of("digits", world.manifests["1.0.0"].digest))
    assert world.unproven == {"digits": NEW}


async def test_the_policy_refuse_keeps_the_model_from_answering_until_there_is_evidence(world, runtime):
    """Then it is loaded without a restart."""
    await upgraded(world, runtime, Policy.REFUSE)
    await world.device.start()
    assert world.device.inference.live == {}
    await world.device.until(lambda: world.events("load-failed"))
    assert NEW in world.events("load-failed")[0].message
    world.sign("1.0.0", "within-budget")
    await world.device.until(lambda: world.device.inference.live == {"digits": "1.0.0"})


@pytest.mark.parametrize("policy", [Policy.TEST, Policy.WARN])
async def test_golden_samples_come_first_where_the_policy_or_a_bad_outcome_asks_for_them(world, runtime, policy):
    """With `test`, and under any policy after an outcome that was bad: a model that fails them does not answer."""
    await upgraded(world, runtime, policy)
    asked = []

    async def activate(model, manifest, folder, *, compare=True):
        asked.append(compare)
        if compare:
            raise SelfTestError("scores differ")

    world.device.inference.activate = activate
    if policy is Policy.WARN:
        world.sign("1.0.0", "worse")
        known = parse_evidence(world.desk.repository.check(world.manifests["1.0.0"].canonical_bytes()).custom)
        EvidenceFile(world.device.disk).put("digits", world.manifests["1.0.0"].digest, known)
    await world.device.start()
    assert asked == [True]
    await world.device.until(lambda: world.events("load-failed"))


@pytest.mark.parametrize(
    ("policy", "outcome", "taken"),
    [
        (Policy.WARN, None, True),
        (Policy.TEST, None, True),
        (Policy.REFUSE, None, False),
        (Policy.REFUSE, "equal", True),
        (Policy.WARN, "worse", False),
        (Policy.TEST, "failed", False),
    ],
)
async def test_an_update_is_judged_before_it_is_downloaded(world, runtime, policy, outcome, taken):
    """What is refused was never fetched, and what ran before answers on."""
    await upgraded(world, runtime, policy)
    world.sign("1.0.0", "equal")
    entry = world.publish("1.1.0")
    if outcome:
        world.sign("1.1.0", outcome)
    await world.device.start()
    world.desk.assign(entry)
    await world.device.until(lambda: world.device.state.outcome and world.device.state.outcome.version == "1.1.0")
    await world.device.settled("1.1.0" if taken else "1.0.0")
    outcome_found = world.device.state.outcome
    assert (outcome_found.result == "succeeded") is taken, outcome_found
    if not taken:
        assert outcome_found.error == "CompatibilityError"
        assert NEW in outcome_found.message


async def test_a_removed_model_leaves_nothing_behind(world, runtime):
    """Facts and file forget it."""
    await upgraded(world, runtime)
    await world.device.start()
    await world.device.until(lambda: world.unproven)
    await world.device.agent.evidence.forget("digits")
    assert world.device.agent.evidence.facts == {}

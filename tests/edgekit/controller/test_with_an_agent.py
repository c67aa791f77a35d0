"""The real agent and the real controller over a broker: assignments, metadata and blocks."""

import contextlib
import math

from device_agents.condition.rules import Condition
from edgekit.health.summary import summarise
from edgekit.mqtt import topics
from edgekit.mqtt.messages import (
    MAX_PAYLOAD_BYTES,
    Answer,
    BlocksRequest,
    BroadcastBlocks,
    BroadcastClaim,
    Envelope,
    FleetHints,
    MetadataRequest,
    Presence,
    Range,
    Telemetry,
    encode,
)
from edgekit.registry import blob_name
from edgekit.rollout.cohort import Device as Enrolled
from edgekit.rollout.values import Aborted, RolloutState
from edgekit.sketches.sketch import made
from edgekit.trust.rotation import KeyManager
from tests.simulators.control import FLEET, TARGET, ControlSide
from tests.simulators.device import DEVICE, Device


@contextlib.asynccontextmanager
async def fleet_of_one(folder):
    """A control side with one enrolled device that runs the real agent."""
    async with ControlSide(folder) as side:
        device = Device(folder / "device", side.broker, side.root)
        pem = (folder / "device" / "device.pub").read_text()
        side.state.devices.enroll(Enrolled(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        await device.start()
        try:
            yield side, device
        finally:
            await device.stop()


async def test_rollout_ends_in_a_committed_bundle(tmp_path):
    """Manifest, metadata and blocks come from the controller's services; the report finishes the rollout."""
    async with fleet_of_one(tmp_path) as (side, device):
        digest = side.publish("digits", "1.0.0", model=b"weights" * 40_000)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0"}
        (view,) = side.state.devices.views(side.clock.wall(), 90.0)
        assert view.models["digits"].digest == digest
        assert view.online


async def test_refused_self_test_pauses_and_the_abort_settles(tmp_path):
    """The device keeps the old version through refusal, pause and abort, and takes the next good one."""
    async with fleet_of_one(tmp_path) as (side, device):
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            side.publish("digits", version)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        device.refused.add("1.1.0")
        side.start("digits", "1.1.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert "SelfTestError" in side.rollout().devices[DEVICE].reason
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        await side.until(lambda: device.reported().assignment == 3)
        side.start("digits", "1.2.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.history == ["1.0.0", "1.2.0"]


async def test_tampered_blob_pauses_and_the_mended_one_is_taken(tmp_path):
    """A changed blob is refused by its digest; after its repair a new rollout succeeds."""
    async with fleet_of_one(tmp_path) as (side, _device):
        side.publish("digits", "1.0.0", model=b"weights" * 40_000)
        manifest = side.reader().resolve("digits", TARGET).manifest
        name = blob_name(manifest.file("model").sha256)
        good = side.store.get(name)
        side.store.put(name, b"X" + good[1:])
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert manifest.file("model").blocks[0] in side.rollout().devices[DEVICE].reason
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        side.store.put(name, good)
        await side.stop_controller()
        await side.start_controller()  # a running one forgets its hot blocks within half a minute
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_command_reaches_the_agent_and_its_answer_comes_back(tmp_path):
    """The command `self-test` arrives with the director's signature, its answer with the device's."""
    async with fleet_of_one(tmp_path) as (side, _device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        now = side.clock.wall()
        asked = side.state.commands.add(DEVICE, "self-test", now=now, expires=now + 60)
        await side.until(lambda: side.state.commands.get(DEVICE, asked.number).state == "done")
        assert side.state.commands.get(DEVICE, asked.number).ok


async def test_disorder_on_the_way_does_not_stop_a_rollout(tmp_path):
    """The rollout ends although messages are doubled and reordered and the connection is cut."""
    async with fleet_of_one(tmp_path) as (side, _device):
        side.broker.duplicate, side.broker.reorder = 0.2, 0.3
        side.publish("digits", "1.0.0", model=b"weights" * 60_000)
        side.start("digits", "1.0.0")
        await side.until(lambda: topics.device(FLEET, DEVICE, "desired") in side.broker.retained)
        side.broker.cut(DEVICE)
        side.broker.publish(topics.device(FLEET, DEVICE, "presence"), encode(Presence(online=False, session=0)), qos=1)
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_every_key_changes_under_a_running_agent(tmp_path):
    """The next rollout and the next command reach the agent without any change on the device."""
    async with fleet_of_one(tmp_path) as (side, device):
        for version in ("1.0.0", "1.1.0"):
            side.publish("digits", version)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        before = side.state.assignments.get(DEVICE).version
        await side.stop_controller()
        keeper = KeyManager(side.store, side.folder / "keys")
        for role in dict.fromkeys(row.role for row in keeper.rows()):
            keeper.rotate(role)
        side.director = side.repository.director()
        await side.start_controller()
        await side.until(lambda: device.reported().assignment > before)
        side.start("digits", "1.1.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.1.0"}
        now = side.clock.wall()
        asked = side.state.commands.add(DEVICE, "self-test", now=now, expires=now + 60)
        await side.until(lambda: side.state.commands.get(DEVICE, asked.number).state == "done")
        assert side.state.commands.get(DEVICE, asked.number).ok


async def test_a_clock_that_stands_in_the_past_is_reported_and_blocks_changes_only(tmp_path, monkeypatch):
    """The agent reports ClockError and keeps its version; when the clock is set, it continues without help."""
    async with fleet_of_one(tmp_path) as (side, device):
        for version in ("1.0.0", "1.1.0"):
            side.publish("digits", version)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        monkeypatch.setattr(device.agent._effects._clock, "wall", lambda: 1000.0)
        side.start("digits", "1.1.0")
        await side.until(lambda: "ClockError" in [event.error for event in side.state.devices.events(DEVICE)])
        assert device.inference.live == {"digits": "1.0.0"}
        monkeypatch.undo()
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


GARBAGE = (
    b"",
    b"\xc1",
    b"\xff" * 100,
    b"\x91" * 200_000,  # a list in a list, and so on
    bytes(MAX_PAYLOAD_BYTES + 1),
    encode(Envelope(b"\xc1", "0" * 64, b"")),
    encode(Presence(online=True, session=2**64 - 1)),
    encode(Telemetry(DEVICE, math.nan, math.inf, {"x": math.nan, "\0": -math.inf})),
    encode(FleetHints(spread_seconds=math.nan)),
    encode(BroadcastClaim("x", seconds=math.nan, missing=(Range(2**63 - 1, -(2**63)),))),
    encode(BroadcastBlocks(-(2**63), b"x" * 100_000)),
    encode(BlocksRequest("x", "0" * 64, (Range(-1, 2**63 - 1),), 2**63 - 1, missing=(Range(0, 2**63 - 1),))),
    encode(MetadataRequest("\0", "../../keys/root.key")),
    encode(Answer("x", 2**63 - 1, -1, b"x", "busy", retry_seconds=math.nan, urls=("http://[", "\0"))),
)


async def test_garbage_on_every_topic_harms_neither_side(tmp_path):
    """Whatever the agent and the controller subscribe to: no handler raises, no task ends, and a rollout follows."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        await side.until(lambda: device.transport.connected)
        transports = (side.controller._transport, device.transport)
        filters = {name for one in transports for name in one.routes}
        assert len(filters) >= 12
        for name in filters:
            for payload in GARBAGE:
                for level in (DEVICE, "f" * 64):
                    side.broker.publish(name.replace("+", level), payload, qos=1)
        side.broker.publish(topics.device(FLEET, DEVICE, "desired"), GARBAGE[-1], qos=1, retain=True)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.inference.live == {"digits": "1.0.0"}
        assert [one.handler_errors for one in transports] == [0, 0]
        parts = side.controller
        services = (parts.blocks, parts.metadata, parts.devices.inbox, parts.blocks.broadcasts)
        assert [one.failures for one in services] == [0] * 4
        assert device.agent._counters()["agent.unexpected_errors"] == 0


async def test_sketches_reach_the_roll_up_of_the_hour(tmp_path):
    """What the agent's inference counted is in the database once, whatever the broker does with the message."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.broker.duplicate = 1.0
        device.inference.sketches = {"digits@0123456789ab/route": made(0, {0: 7}, (0.0, 0.0), 7)}
        device.condition = Condition(temperature_celsius=61)
        await side.until(lambda: len(summary(side).bundles) == 1 and summary(side).temperature_celsius)
        assert summary(side).bundles[0].requests == 7
        assert summary(side).temperature_celsius == (61.0, 61.0)


def summary(side):
    return summarise(hour.body.sketches for hour in side.state.telemetry.hours(DEVICE))


async def test_an_update_needs_one_request_for_metadata_and_few_reports(tmp_path):
    """A device in step with a fleet sends little: the controller answers with all newer files at once."""
    async with fleet_of_one(tmp_path) as (side, _):
        for version in ("1.0.0", "2.0.0"):
            side.publish("digits", version, model=version.encode() * 40_000)
            before = len(side.broker.published)
            side.start("digits", version)
            await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
            said = [one.topic for one in side.broker.published[before:]]
            assert said.count(topics.request(FLEET, "metadata", DEVICE)) == 1
            assert said.count(topics.device(FLEET, DEVICE, "reported")) < 8

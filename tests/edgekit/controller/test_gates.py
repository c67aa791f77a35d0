"""Gates through a real controller and database: reports of devices stop a rollout, and the cohort returns."""

import msgspec
import pytest

from edgekit.controller import rollouts
from edgekit.mqtt.messages import Behaviour, Running
from edgekit.registry import publish
from edgekit.rollout.cohort import Device as Enrolled
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.gates import parse_gate
from edgekit.rollout.plan import Wave
from edgekit.rollout.values import Aborted, RolloutState
from tests.simulators.control import TARGET, ControlSide
from tests.simulators.device import DEVICE
from tests.simulators.real_device import RealDevice
from tests.simulators.small_models import SURE, onnx_bundle

GATES = (parse_gate("outcome"),)
GOOD, BAD = Behaviour(requests=100, outcomes=100, good=95), Behaviour(requests=100, outcomes=100, good=20)


async def behave(device, **behaviours):
    """Let a device report how bundles behaved, by digest; the last one is what runs."""
    device.models["digits"] = Running(digest=device.models["digits"].digest, version="1", behaviour=behaviours)
    await device.report()


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """Survey gated rollouts as often as others, so that no test waits."""
    monkeypatch.setattr(rollouts, "GATED_SECONDS", 0.02)


async def three_devices(side):
    """Digests of two published versions, and devices that run the first one, with good outcomes."""
    old, new = side.publish("digits", "1.0.0"), side.publish("digits", "1.1.0")
    devices = [await side.device(f"pi-{number}") for number in range(3)]
    side.start("digits", "1.0.0")
    await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
    for device in devices:
        await behave(device, **{old: GOOD})
    return old, new, devices


async def test_a_gate_stops_the_rollout_and_takes_the_bundle_back(tmp_path):
    """From a published version and back: the assignment of every device names the earlier bundle, as a downgrade."""
    async with ControlSide(tmp_path) as side:
        old, new, devices = await three_devices(side)
        side.start("digits", "1.1.0", waves=(Wave(share=1.0),), gates=GATES, soak_seconds=3600.0, on_failure="return")
        await side.until(lambda: side.rollout().counts()["SUCCEEDED"] == 3)
        for device in devices:
            await behave(device, **{old: GOOD, new: BAD})
        await side.until(lambda: side.rollout().state is RolloutState.ABORTED)
        assert "good outcomes fell from 95.0% to 20.0%" in side.rollout().reason
        await side.until(lambda: side.rollout().counts()["RETURNED"] == 3)
        for device in devices:
            (entry,) = side.state.assignments.get(device.name).entries.values()
            assert (entry.version, entry.downgrade) == ("1.0.0", True)
        entries = side.state.audit.entries(what="rollout.aborted")
        assert entries[0].after["returned"] == ["pi-0", "pi-1", "pi-2"]
        assert "outcome drop <= 0" in entries[0].after["reason"]


async def test_a_lying_device_stops_nothing(tmp_path):
    """One device that calls every answer bad is set apart."""
    async with ControlSide(tmp_path) as side:
        old, new, devices = await three_devices(side)
        side.start("digits", "1.1.0", waves=(Wave(share=1.0),), gates=GATES, soak_seconds=1.0)
        await side.until(lambda: side.rollout().counts()["SUCCEEDED"] == 3)
        liar, *honest = devices
        await behave(liar, **{old: GOOD, new: msgspec.structs.replace(BAD, good=0)})
        for device in honest:
            await behave(device, **{old: GOOD, new: GOOD})
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert side.rollout().devices["pi-0"].observed is not None


async def test_a_control_cohort_separates_a_worse_world_from_a_worse_model(tmp_path):
    """Good outcomes fall on all devices: the rollout goes on. They fall further with the new model: it stops."""
    async with ControlSide(tmp_path) as side:
        old, new = side.publish("digits", "1.0.0"), side.publish("digits", "1.1.0")
        devices = {f"pi-{number}": await side.device(f"pi-{number}") for number in range(8)}
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        counts = {name: {old: Behaviour(requests=400, outcomes=400, good=380)} for name in devices}
        for name, device in devices.items():
            await behave(device, **counts[name])
        await side.until(lambda: all(one.models["digits"].behaviour for one in side.state.devices.views(0.0, 90.0)))
        waves = (Wave(count=2), Wave(share=1.0))
        side.start("digits", "1.1.0", waves=waves, gates=GATES, soak_seconds=3600.0, control="cohort")
        await side.until(lambda: side.rollout().counts()["SUCCEEDED"] == 2)
        first = {name for name, one in side.rollout().devices.items() if one.assigned_at}

        async def answer(good_of_new):
            """Every device reports 40 answers more; those of the old version are good in half of the cases."""
            for name, device in devices.items():
                digest, good = (new, good_of_new) if name in first else (old, 20)
                before = counts[name].get(digest, Behaviour())
                sums = [before.requests + 40, before.outcomes + 40, before.good + good]
                counts[name][digest] = Behaviour(requests=sums[0], outcomes=sums[1], good=sums[2])
                await behave(device, **counts[name])

        def compared():
            return sum(view.pairs for view in gate_views(side.rollout()))

        await answer(20)
        await answer(20)
        await side.until(lambda: compared() >= 80)
        assert side.rollout().state is RolloutState.RUNNING
        for pairs in (160, 240):
            await answer(2)
            await side.until(lambda most=pairs: compared() >= most or side.rollout().reason)
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert "now in the control cohort of 6 devices" in side.rollout().reason


async def test_the_reports_of_a_real_agent_have_what_gates_compare(tmp_path):
    """Requests and outcomes of both bundles, counted by the inference service of a device."""
    async with ControlSide(tmp_path) as side:
        device = RealDevice(tmp_path / "device", side.broker, side.root)
        pem = (tmp_path / "device" / "device.pub").read_text()
        side.state.devices.enroll(Enrolled(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        device.options = {"heartbeat_seconds": 0.2}
        await device.start()
        try:
            digests = []
            for version, good in (("1.0.0", True), ("1.1.0", False)):
                manifest = onnx_bundle(tmp_path / version, name="digits", version=version, target=TARGET)
                publish(side.store, side.repository, tmp_path / version)
                digests.append(manifest.digest)
                side.start("digits", version, gates=GATES, soak_seconds=3600.0)
                await side.until(lambda: side.rollout().counts()["SUCCEEDED"] == 1)
                for number in range(20):
                    await device.inference.infer("digits", {"x": SURE}, request_id=str(number))
                    device.inference.outcome("digits", str(number), good=good)
                if good:
                    side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
            await side.until(lambda: side.rollout().devices[DEVICE].observed.candidate.total.requests == 20)
            observed = side.rollout().devices[DEVICE].observed
            assert observed.previous == digests[0]
            assert (observed.pairs["outcome drop <= 0"].worse, observed.candidate.total.requests) == (20, 20)
        finally:
            await device.stop()

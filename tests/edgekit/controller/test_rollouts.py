"""Rollouts over a broker with real signatures and a real database; devices succeed, refuse or stay silent."""

import asyncio

from edgekit.controller import ControllerOptions
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Running, Waiting
from edgekit.rollout.plan import Wave
from edgekit.rollout.values import Aborted, DeviceState, Resumed, RolloutState
from edgekit.trust.client import TrustClient
from edgekit.trust.rotation import KeyManager
from tests.simulators.control import FLEET, ControlSide

EVERYBODY = {"waves": (Wave(share=1.0),)}


async def test_rollout_reaches_every_device_in_waves(tmp_path):
    """Every device gets the signed assignment, reports the digest, and the rollout finishes."""
    async with ControlSide(tmp_path) as side:
        digest = side.publish("digits", "1.0.0")
        devices = [await side.device(f"pi-{i}") for i in range(4)]
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert {device.models["digits"].digest for device in devices} == {digest}
        assert side.rollout().counts()["SUCCEEDED"] == 4


async def test_assignment_verifies_on_the_device(tmp_path):
    """The retained assignment passes the device's verification and agrees with the catalogue."""
    async with ControlSide(tmp_path) as side:
        digest = side.publish("digits", "1.0.0")
        await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        payload = side.broker.retained[topics.device(FLEET, "pi-1", "desired")]
        client = TrustClient(tmp_path / "device-cache", side.root, lambda name: side.store.get(f"metadata/{name}"))
        client.refresh()
        assignment = client.verify_assignment(payload, "pi-1", FLEET, side.clock.wall())
        assert assignment.entries["digits"].sha256 == digest
        assert assignment.version == 1
        assert 29 * 86_400 < assignment.expires - side.clock.wall() <= 30 * 86_400


async def test_refusal_pauses_before_the_others_are_told(tmp_path):
    """One refusal in the first wave of a small fleet pauses the rollout; no other device gets the version."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        devices = [await side.device(f"pi-{i}", behaviour="refuse") for i in range(3)]
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert "error threshold" in side.rollout().reason
        assert sum(bool(device.wanted) for device in devices) == 1


async def test_abort_gives_back_what_was_assigned_before(tmp_path):
    """After an abort, a device that refused is assigned its old version again, with a higher assignment version."""
    async with ControlSide(tmp_path) as side:
        old = side.publish("digits", "1.0.0")
        side.publish("digits", "1.1.0")
        device = await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        device.behaviour = "refuse"
        side.start("digits", "1.1.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        await side.until(lambda: device.wanted.get("digits") == old and len(device.versions) == 3)
        assert device.versions == sorted(device.versions)


async def test_abort_without_a_version_before_takes_the_model_out(tmp_path):
    """A device that had nothing before is assigned nothing after the abort."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1", behaviour="silent")
        side.start("digits", "1.0.0")
        await side.until(lambda: device.wanted)
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        await side.until(lambda: len(device.versions) == 2 and not device.wanted)


async def test_two_models_share_one_assignment(tmp_path):
    """Rollouts of two models are merged into one document for each device."""
    async with ControlSide(tmp_path) as side:
        digits, faces = side.publish("digits", "1.0.0"), side.publish("faces", "2.0.0")
        device = await side.device("pi-1")
        side.start("digits", "1.0.0")
        side.start("faces", "2.0.0")
        await side.until(lambda: device.wanted == {"digits": digits, "faces": faces})


async def test_rollout_goes_on_after_the_controller_was_killed(tmp_path):
    """When a controller is killed in a wave, another one continues from the database."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        devices = [await side.device(f"pi-{i}", behaviour="silent") for i in range(3)]
        side.start("digits", "1.0.0")
        await side.until(lambda: any(device.wanted for device in devices))
        await side.kill_controller()
        for device in devices:
            device.behaviour = "succeed"
        await side.start_controller()
        first = next(device for device in devices if device.wanted)
        first._deploy("digits", "1.0.0", first.wanted["digits"])
        await first.report()
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_broker_that_forgot_is_given_everything_again(tmp_path):
    """After the broker lost its retained messages, all assignments are published again."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        side.broker.stop()
        side.broker.retained.clear()
        await asyncio.sleep(0.05)
        side.broker.start()
        await side.until(lambda: topics.device(FLEET, "pi-1", "desired") in side.broker.retained)


async def test_rollout_waits_for_the_broker(tmp_path):
    """A rollout that is started while the broker cannot be reached begins when the connection is back."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        await side.device("pi-1")
        side.broker.stop()
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().counts()["TOLD"] == 1)
        side.broker.start()
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_silent_device_fails_at_its_deadline(tmp_path):
    """An assigned device that reports nothing fails at its deadline."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        await side.device("pi-1", behaviour="silent")
        side.start("digits", "1.0.0", device_deadline_seconds=0.2)
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        assert side.rollout().devices["pi-1"].reason.startswith("silent")


async def test_device_that_enrolls_late_is_reached(tmp_path):
    """A device that enrolls while a rollout runs takes part in it."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        slow = await side.device("pi-1", behaviour="silent")
        side.start("digits", "1.0.0", **EVERYBODY)
        await side.until(lambda: slow.wanted)
        late = await side.device("pi-2")
        await side.until(lambda: late.models)
        assert side.rollout().devices["pi-2"].state in (DeviceState.ASSIGNED, DeviceState.SUCCEEDED)


async def test_target_that_is_published_meanwhile_is_found(tmp_path):
    """Devices without a bundle are skipped; when a bundle for their target is published, it is assigned to them."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        pi = await side.device("pi-1", behaviour="silent")
        jetson = await side.device("jetson-1", target="jetson-orin")
        side.start("digits", "1.0.0", **EVERYBODY)
        await side.until(lambda: pi.wanted)
        assert side.rollout().devices["jetson-1"].state is DeviceState.SKIPPED
        digest = side.publish("digits", "1.0.0", target="jetson-orin")
        await side.stop_controller()
        await side.start_controller()  # looks at once; a running one looks every minute
        await side.until(lambda: jetson.wanted == {"digits": digest})


async def test_repeated_failure_report_counts_once(tmp_path):
    """Heartbeats that repeat an old refusal do not fail the second attempt."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1", behaviour="refuse")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        device.behaviour = "silent"
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().counts()["TOLD"] == 1)
        number = device.number
        await device.report()
        await side.until(lambda: _reported(side) > number)
        assert side.rollout().state is RolloutState.RUNNING
        device.behaviour = "succeed"
        device._deploy("digits", "1.0.0", device.wanted["digits"])
        await device.report()
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)


async def test_resume_goes_on_past_failures(tmp_path):
    """After a resume, the remaining devices are assigned."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        devices = [await side.device(f"pi-{i}", behaviour="refuse") for i in range(2)]
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        for device in devices:
            device.behaviour = "succeed"
        side.state.rollouts.apply(side.rollout().id, Resumed(), side.clock.wall())
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert {state: n for state, n in side.rollout().counts().items() if n} == {"SUCCEEDED": 1, "FAILED": 1}


async def test_a_new_director_signs_everything_again(tmp_path):
    """A controller with a new key signs all assignments again, once, with higher versions."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: (found := side.state.assignments.get("pi-1")) and found.published)
        before = side.state.assignments.get("pi-1")
        await side.stop_controller()
        KeyManager(side.store, side.folder / "keys").rotate("director")
        side.director = side.repository.director()
        keyid = side.director.public_key.keyid.encode()
        assert keyid not in before.payload
        await side.start_controller()
        await side.until(lambda: side.state.assignments.get("pi-1").published > before.version)
        after = side.state.assignments.get("pi-1")
        assert keyid in after.payload
        assert after.entries == before.entries
        assert side.state.assignments.renew_other_signers(side.director.public_key.keyid) == 0


async def test_another_controller_with_another_database_is_named_and_not_outbid_for_ever(tmp_path):
    """A device that was ahead again and again is answered later and later, and an event says why."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        for accepted in (10, 20, 30):
            await device.report(assignment=accepted)
            await side.until(lambda accepted=accepted: accepted + 1 in device.versions)
            # The device reports that it has accepted it; that report must not come after the next one here.
            await side.until(
                lambda accepted=accepted: side.state.devices.views(0.0, 90.0)[0].assignment == accepted + 1
            )
        await device.report(assignment=40)
        await side.until(lambda: side.state.devices.views(0.0, 90.0)[0].assignment == 40)
        await device.report(assignment=40)
        assert side.state.assignments.get("pi-1").version == 31
        (event,) = [one for one in side.state.devices.events("pi-1") if one.kind == "assignment-contested"]
        assert "another controller signs assignments of fleet 'test' from another database" in event.message


async def test_expiring_assignment_is_renewed(tmp_path):
    """An assignment is signed again with a higher version before it expires."""
    side = ControlSide(tmp_path)
    side.options = ControllerOptions(tick_seconds=0.01, assignment_days=1)
    async with side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1")
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert device.versions == [1]
        await side.stop_controller()
        side.clock = _Later(side.clock, days=0.8)
        await side.start_controller()
        await side.until(lambda: device.versions == [1, 2])
        assert device.wanted


async def test_restored_database_goes_above_what_devices_saw(tmp_path):
    """With a restored, older database, assignment versions still rise for the devices."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        device = await side.device("pi-1")
        await device.report(assignment=41)
        await side.until(lambda: _reported(side) == device.number)
        side.start("digits", "1.0.0")
        await side.until(lambda: device.versions == [42])


def _reported(side):
    with side.state._engine.connect() as connection:
        return connection.exec_driver_sql("SELECT max(number) FROM reports").scalar()


class _Later:
    def __init__(self, clock, *, days):
        self._clock, self._seconds = clock, days * 86_400

    def monotonic(self):
        return self._clock.monotonic()

    def wall(self):
        return self._clock.wall() + self._seconds


async def test_a_device_that_waits_is_waited_for_and_one_that_was_late_is_watched(tmp_path):
    """A live controller takes the reason from the report; after an abort it goes on watching the device."""
    async with ControlSide(tmp_path) as side:
        digest = side.publish("digits", "1.0.0")
        device = await side.device("pi-1", behaviour="silent")
        side.start("digits", "1.0.0", device_deadline_seconds=0.5)
        await side.until(lambda: device.versions)
        await device.report(models={"digits": Running(waiting=Waiting("metered", 1.0, digest))})
        await side.until(lambda: side.rollout().counts()["WAITING"] == 1)
        await asyncio.sleep(0.6)  # longer than the deadline
        assert side.rollout().counts()["WAITING"] == 1
        side.state.rollouts.apply(side.rollout().id, Aborted(), side.clock.wall())
        await side.until(lambda: device.wanted == {})
        await device.report(models={"digits": Running(digest=digest, version="1.0.0")})
        await side.until(lambda: side.rollout().counts()["SUCCEEDED"] == 1)
        assert side.rollout().state is RolloutState.ABORTED
        await side.until(lambda: device.wanted == {"digits": digest})


async def test_an_unreadable_rollout_does_not_stop_the_others(tmp_path):
    """The controller goes on signing and advancing; the broken rollout waits for its abort."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        side.publish("letters", "1.0.0")
        device = await side.device("pi-1", behaviour="silent")
        broken = side.start("digits", "1.0.0")
        await side.until(lambda: device.versions)
        with side.state._engine.connect() as connection, connection.begin():
            connection.exec_driver_sql("UPDATE rollouts SET body = '{}', revision = revision + 1")
        device.behaviour = "succeed"
        side.start("letters", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert side.state.rollouts.get(broken.id).fault
        assert side.state.rollouts.apply(broken.id, Aborted(), side.clock.wall()).state is RolloutState.ABORTED

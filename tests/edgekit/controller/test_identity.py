"""Devices that lost their disk are heard again, and two devices under one name are noticed."""

import shutil

import msgspec
import pytest

from edgekit.bounds import MAX_INTEGER
from edgekit.controller.recovery import collect_retained, found_devices
from edgekit.mqtt import topics
from edgekit.mqtt.broker import find_mosquitto, start_broker
from edgekit.mqtt.messages import (
    NOTICE,
    OWN_REPORT,
    Answer,
    BlocksRequest,
    Presence,
    Range,
    Reported,
    decode,
    encode,
)
from edgekit.rollout.cohort import Device as Enrolled
from edgekit.state import open_fleet_state
from edgekit.trust.envelopes import seal
from edgekit.trust.keys import generate_key, load_signer
from tests.edgekit.controller.test_with_an_agent import fleet_of_one
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, TARGET, ControlSide
from tests.simulators.device import DEVICE, Device
from tests.simulators.disk import FaultyDisk
from tests.simulators.transport import MemoryTransport

CLOCK_1970 = "tests/simulators/clock_1970"


def kinds(side, name=DEVICE):
    return {event.kind for event in side.state.devices.events(name)}


def view(side, name=DEVICE):
    (found,) = side.state.devices.views(side.clock.wall(), 90.0, name)
    return found


def store_high_numbers(side, name=DEVICE, signer=None):
    """What an earlier life of the device left in the database, some time ago; unsigned, as older releases kept it."""
    earlier = Reported(name, FLEET, 5000, 0.0, 3, {}, {}, facts={"life": "earlier"}, session=900, command=70)
    payload = seal(earlier, signer) if signer else None
    assert side.state.devices.save_report(earlier, side.clock.wall() - 60, payload=payload)
    side.state.devices.save_presence(name, Presence(True, 900), side.clock.wall() - 60)


@pytest.mark.parametrize("signed", [True, False], ids=["own report", "notice"])
async def test_new_disk_without_a_retained_report_learns_from_the_controller(tmp_path, signed):
    """The controller drops the first report, says so in an event, and sends the numbers; the next report is stored."""
    async with ControlSide(tmp_path) as side:
        device = Device(tmp_path / "device", side.broker, side.root)
        pem = (tmp_path / "device" / "device.pub").read_text()
        side.state.devices.enroll(Enrolled(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        store_high_numbers(side, signer=device.signer if signed else None)
        await device.start()
        await side.until(lambda: view(side).facts == {"arch": "aarch64"})
        await side.until(lambda: {"numbers-behind", "numbers-learned"} <= kinds(side))
        stored = side.state.devices.numbers(DEVICE)
        assert stored.report > 5000
        assert stored.session == 1
        asked = side.state.commands.add(DEVICE, "self-test", now=0.0, expires=side.clock.wall() + 60)
        assert asked.number == 71
        await side.until(lambda: side.state.commands.get(DEVICE, asked.number).state == "done")
        await device.kill()
        await side.until(lambda: not view(side).online)
        assert device.agent._journal.record.session == 900


async def test_a_report_with_the_highest_number_calls_for_a_new_key(tmp_path):
    """A holder of the key can send it, and nothing can follow; both sides say what to do, and a new key ends it."""
    async with ControlSide(tmp_path) as side:
        device = Device(tmp_path / "device", side.broker, side.root)
        pem = (tmp_path / "device" / "device.pub").read_text()
        side.state.devices.enroll(Enrolled(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        last = Reported(DEVICE, FLEET, MAX_INTEGER, 0.0, 3, {}, {}, session=900)
        assert side.state.devices.save_report(last, side.clock.wall() - 60, payload=seal(last, device.signer))
        await device.start()
        await side.until(lambda: "numbers-behind" in kinds(side))
        (event,) = [event for event in side.state.devices.events(DEVICE) if event.kind == "numbers-behind"]
        assert event.message.endswith(f"Give it a new key: edgekit device rekey {DEVICE}")
        await device.stop()
        generate_key(tmp_path / "new.key")
        side.state.lifecycle.rekey(DEVICE, (tmp_path / "new.pub").read_text(), side.clock.wall())
        device.signer = load_signer(tmp_path / "new.key")
        await device.start()
        await side.until(lambda: 0 < side.state.devices.numbers(DEVICE).report < MAX_INTEGER)


async def test_two_devices_that_learn_from_each_other_say_so_once_a_minute(tmp_path):
    """Each report of a copy raises the numbers of the other one; their events must not push out all others."""
    async with fleet_of_one(tmp_path) as (side, device):
        await side.until(lambda: view(side).online)
        number = 5000
        for _ in range(4):
            number = max(number, side.state.devices.numbers(DEVICE).report) + 1000
            report = Reported(DEVICE, FLEET, number, 0.0, 0, {}, {}, session=1, run=f"copy{number}")
            payload = seal(report, device.signer)
            side.broker.publish(topics.answer(FLEET, DEVICE), encode(Answer(id=OWN_REPORT, data=payload)))
            await side.until(lambda number=number: side.state.devices.numbers(DEVICE).report > number)
        learned = [event for event in side.state.devices.events(DEVICE) if event.kind == "numbers-learned"]
        assert len(learned) == 1


async def test_new_disk_learns_from_the_retained_report_alone(tmp_path):
    """The device's own signature proves the numbers, also the accepted assignment, without a controller."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: device.rests("1.0.0") and view(side).assignment == 1)
        await side.stop_controller()
        await device.stop()
        before = device.reported()  # the last one: a device that stops may send another
        device.disk = FaultyDisk()
        await device.start()
        await device.until(lambda: device.reported().number > before.number)
        record = device.agent._journal.record
        assert (record.assignment, record.session) == (before.assignment, before.session)


async def test_retained_report_of_another_key_teaches_nothing(tmp_path):
    """Somebody who can publish cannot raise a device's numbers."""
    async with fleet_of_one(tmp_path) as (side, device):
        await side.until(lambda: view(side).facts)
        before = device.reported()
        await device.stop()
        forged = msgspec.structs.replace(before, number=10**9)
        payload = seal(forged, generate_key(tmp_path / "other.key"))
        side.broker.publish(topics.device(FLEET, DEVICE, "reported"), payload, qos=1, retain=True)
        await device.start()
        await side.until(lambda: kinds(side) >= {"bad-signature"})
        await device.until(lambda: side.broker.retained[topics.device(FLEET, DEVICE, "reported")] != payload)
        assert device.reported().number < 10**6


async def test_two_agents_under_one_name_are_an_event(tmp_path):
    """Reports of two runs alternate; restarts of one device do not count."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        for number, run in enumerate(["a", "a", "b", "c"], 10):
            await device.report(number=number, run=run)
        await side.until(lambda: side.state.devices.numbers("pi-1").run == "c")
        assert kinds(side, "pi-1") == set()
        await device.report(number=20, run="a")
        await side.until(lambda: kinds(side, "pi-1") == {"name-used-twice"})


async def test_two_older_agents_under_one_name_are_an_event(tmp_path):
    """Their reports name no run, so their sessions are compared."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        for session in (4, 4, 9):
            await device.say("presence", encode(Presence(True, session)), retain=True)
        await device.report(facts={"heard": True})
        await side.until(lambda: view(side, "pi-1").facts)
        assert kinds(side, "pi-1") == set()
        await device.say("presence", encode(Presence(True, 4)), retain=True)
        await side.until(lambda: kinds(side, "pi-1") == {"name-used-twice"})


async def test_restored_database_gives_assignments_above_the_accepted_ones(tmp_path):
    """The device has accepted version 40; the database knows an older one and goes above."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: device.rests("1.0.0"))
        await side.stop_controller()
        device.agent._journal.accept_assignment(40)
        device.agent._link.changed()
        await device.until(lambda: device.reported().assignment == 40)
        await side.start_controller()
        await side.until(lambda: view(side).assignment == 41)


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
async def test_processes_with_a_clock_in_1970_and_two_of_one_name(tmp_path):
    """A re-flashed agent whose clock shows 1970 is heard again; a copy of it is named by both sides."""
    async with await start_broker("127.0.0.1", 0, tmp_path / "broker", kind="mosquitto") as broker:
        side = ControlSide(tmp_path, broker.url)
        async with side:
            agent = enrolled(side, broker.url)
            await agent.start()
            await side.until(lambda: view(side, "pi-1").online)
            await agent.end()
            shutil.rmtree(agent.folder / "state")
            store_high_numbers(side, "pi-1", load_signer(agent.folder / "device.key"))
            before = side.state.devices.numbers("pi-1")
            agent.environ["PYTHONPATH"] = f"{CLOCK_1970}:."
            await agent.start()
            await side.until(lambda: side.state.devices.numbers("pi-1").run not in ("", before.run))
            await side.until(lambda: "numbers-learned" in kinds(side, "pi-1"))
            shutil.copytree(agent.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
            copy = AgentProcess(tmp_path / "copy")
            await copy.start()
            try:
                await side.until(lambda: {"name-used-twice", "name-taken"} <= kinds(side, "pi-1"))
            finally:
                await copy.end()
                await agent.end()
            assert "the name pi-1 is used twice" in agent.log() + copy.log()


def enrolled(side, url):
    folder = side.folder / "pi-1"
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    settings = {"device": "pi-1", "fleet": FLEET, "target": "x86-64", "broker": url, "http": "127.0.0.1:0"}
    lines = [f'{key} = "{value}"\n' for key, value in settings.items()]
    (folder / "agent.toml").write_text("".join(lines) + "heartbeat_seconds = 0.5\n")
    pem = (folder / "device.pub").read_text()
    side.state.devices.enroll(Enrolled("pi-1", "x86-64", pem, enrolled=side.clock.wall()))
    return AgentProcess(folder)


async def test_removed_device_is_told_once_and_retains_nothing(tmp_path):
    """It keeps its model, logs the reason, and its further messages make no events."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: device.rests("1.0.0") and view(side).assignment == 1)
        side.state.lifecycle.remove(DEVICE, side.clock.wall())
        topic = topics.device(FLEET, DEVICE, "desired")
        await side.until(lambda: topic not in side.broker.retained)
        for _ in range(3):
            device.agent._link.changed()
            await device.until(lambda: device.rests("1.0.0"))
        await side.until(lambda: side.state.lifecycle.refused()[DEVICE].told)
        reported = topics.device(FLEET, DEVICE, "reported")
        await side.until(lambda: reported not in side.broker.retained)  # also what it sent after its removal
        assert "unknown-device" not in kinds(side)
        assert device.inference.live == {"digits": "1.0.0"}
        answers = [m for m in side.broker.published if m.topic == topics.answer(FLEET, DEVICE)]
        assert sum(decode(m.payload, Answer).id == NOTICE for m in answers) == 1


async def test_copies_go_into_quarantine_where_the_setting_asks_for_it(tmp_path):
    """Reports are still stored, blocks are refused."""
    side = ControlSide(tmp_path)
    side.options = msgspec.structs.replace(side.options, quarantine_clones=True)
    async with side:
        device = await side.device("pi-1")
        for number, run in enumerate(["a", "b", "a"], 10):
            await device.report(number=number, run=run)
        await side.until(lambda: view(side, "pi-1").quarantine)
        await side.until(lambda: side.controller.refusals.reason("pi-1"))
        await device.report(number=30, run="a", facts={"heard": True})
        await side.until(lambda: view(side, "pi-1").facts)
        request = BlocksRequest("r1", "0" * 64, (Range(0, 0),), 1)
        await device.transport.publish(topics.request(FLEET, "blocks", "pi-1"), encode(request), qos=1)
        await side.until(lambda: any(decode(a, Answer).error == "bad-request" for a in device.answers))


async def test_a_lost_database_is_rebuilt_from_what_devices_signed(tmp_path):
    """Key, target, numbers and the signed assignment come back; forged and older reports are named and left out."""
    async with fleet_of_one(tmp_path) as (side, device):
        side.publish("digits", "1.0.0")
        side.start("digits", "1.0.0")
        await side.until(lambda: device.rests("1.0.0") and view(side).assignment == 1)
        retained = await collect_retained(MemoryTransport(side.broker, "recovery"), FLEET, 0.2)
        await side.stop_controller()
    report = device.reported()
    forged = msgspec.structs.replace(report, device="pi-9")
    retained["pi-9"] = {"reported": seal(forged, generate_key(tmp_path / "other.key"))}
    older = msgspec.structs.replace(report, device="pi-8", key=b"")
    retained["pi-8"] = {"reported": seal(older, device.signer)}
    found = {one.name: one for one in found_devices(retained, FLEET, side.director.public_key, 1000.0)}
    assert "signature" in found["pi-9"].fault or "signed" in found["pi-9"].fault
    assert "device.pub" in found["pi-8"].fault
    assert "target profile" in found[DEVICE].fault  # the simulated device has no target among its facts
    facts = {"target": TARGET}
    retained[DEVICE]["reported"] = seal(msgspec.structs.replace(report, facts=facts), device.signer)
    (good,) = found_devices({DEVICE: retained[DEVICE]}, FLEET, side.director.public_key, 1000.0)
    state = open_fleet_state(f"sqlite:///{tmp_path / 'new.db'}", FLEET)
    state.records.add([(good.record, good.report)], 1000.0, source="reports", assignments={DEVICE: good.assignment})
    assert state.devices.get(DEVICE).public_key.strip() == (tmp_path / "device" / "device.pub").read_text().strip()
    assert state.assignments.get(DEVICE).entries["digits"].version == "1.0.0"
    assert state.devices.numbers(DEVICE).report == report.number
    state.close()

"""Messages of devices are verified and stored; commands are sent signed, and their answers are stored."""

import msgspec
import sqlalchemy as sa

from edgekit.controller.inbox import HELD_SECONDS
from edgekit.errors import DataError, UnavailableError
from edgekit.mqtt import topics
from edgekit.mqtt.messages import Command, Event, Outcome, Presence, Result, Telemetry, encode
from edgekit.rollout.values import RolloutState
from edgekit.trust.envelopes import open_envelope, seal
from tests.simulators.control import FLEET, ControlSide, FakeDevice


def view(side, name="pi-1"):
    (found,) = side.state.devices.views(side.clock.wall(), 90.0, name)
    return found


def events(side, name="pi-1"):
    return [event.kind for event in side.state.devices.events(name)]


async def test_report_is_kept_and_shown(tmp_path):
    """A signed report is shown in the operator's view of the device."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await device.report(facts={"arch": "aarch64"})
        await side.until(lambda: view(side).facts == {"arch": "aarch64"})
        assert view(side).online


async def test_older_and_repeated_reports_are_passed_over(tmp_path):
    """Only a report with a higher number replaces the stored one."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await device.report(number=50, facts={"n": 50})
        await side.until(lambda: view(side).facts == {"n": 50})
        await device.report(number=49, facts={"n": 49})
        await device.report(number=50, facts={"n": "again"})
        await device.report(number=51, facts={"n": 51})
        await side.until(lambda: view(side).facts != {"n": 50})
        assert view(side).facts == {"n": 51}


async def test_report_by_another_key_is_an_event_and_nothing_else(tmp_path):
    """A report that another key signed changes nothing."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await side.until(lambda: view(side).seen)
        stranger = FakeDevice(side.broker, tmp_path / "elsewhere", "pi-1")
        device.signer = stranger.signer
        await device.report(facts={"forged": True})
        await side.until(lambda: events(side) == ["bad-signature"])
        assert view(side).facts == {}


async def test_unknown_device_and_garbage_are_events(tmp_path):
    """Unreadable messages and unknown devices become events; the controller continues."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        side.broker.publish(topics.device(FLEET, "ghost", "reported"), b"\xc1", qos=1)
        await device.say("reported", b"\xc1 garbage")
        await side.until(lambda: events(side, "ghost") == ["unknown-device"] and events(side) == ["bad-message"])
        for _ in range(20):
            await device.say("reported", b"more garbage")
        await device.report(facts={"fine": True})
        await side.until(lambda: view(side).facts == {"fine": True})
        assert events(side) == ["bad-message"]
        assert side.controller.devices.inbox.failures == 0


async def test_report_for_another_device_or_fleet_is_refused(tmp_path):
    """A device can report only about itself and in its own fleet."""
    async with ControlSide(tmp_path) as side:
        device, other = await side.device("pi-1"), await side.device("pi-2")
        await device.report(device="pi-2", facts={"forged": True})
        await side.until(lambda: events(side) == ["bad-message"])
        await other.report(fleet="elsewhere", facts={"forged": True})
        await side.until(lambda: events(side, "pi-2") == ["bad-message"])
        assert view(side).facts == view(side, "pi-2").facts == {}


async def test_will_of_an_older_session_does_not_end_the_newer_one(tmp_path):
    """Presence follows the session number and not the order of arrival."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")

        async def online_after(*said):
            for online, session in said:
                await device.say("presence", encode(Presence(online=online, session=session)))
            mark = float(said[-1][1])
            await device.say("telemetry", encode(Telemetry("pi-1", 1.0, 1.0, {"mark": mark})))
            await side.until(lambda: view(side).telemetry.get("counters") == {"mark": mark})
            return view(side).online

        assert await online_after((True, 5), (False, 4))
        assert not await online_after((False, 5))
        assert await online_after((True, 7), (False, 6))


async def test_heartbeat_after_a_late_will_means_online(tmp_path):
    """A will that arrives after the device came back in the same session is corrected by its next report."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await side.until(lambda: view(side).online)
        await device.say("presence", encode(Presence(online=False, session=1)))
        await side.until(lambda: not view(side).online)
        await device.report()
        await side.until(lambda: view(side).online)


async def test_events_and_telemetry_are_kept(tmp_path):
    """A device's event is stored with its reason; its last counters are shown."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        event = Event(device="pi-1", kind="refused", at=1.0, model="digits", error="SelfTestError", message="wrong")
        await device.say("event", seal(event, device.signer))
        await device.say("telemetry", encode(Telemetry("pi-1", 2.0, 60.0, {"requests": 7.0})))
        await side.until(lambda: view(side).telemetry)
        assert view(side).telemetry["counters"] == {"requests": 7.0}
        (kept,) = side.state.devices.events("pi-1")
        assert (kept.kind, kept.model, kept.error, kept.message) == ("refused", "digits", "SelfTestError", "wrong")


async def test_absurd_values_do_no_harm(tmp_path):
    """Numbers too large for the database are ignored, and texts too long for a column are cut."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await device.report(number=2**63)
        await device.say("presence", encode(Presence(online=True, session=2**63)))
        await device.report(at=float("nan"))
        await device.report(facts={"deep": _nested(900)})
        await device.report(facts={"foreign": msgspec.msgpack.Ext(5, b"x")})
        event = Event(device="pi-1", kind="k" * 500, at=1.0, message="m" * 100_000, detail={"d": "x" * 10_000})
        await device.say("event", seal(event, device.signer))
        await side.until(lambda: len(events(side)) == 2)
        kept, complaint = side.state.devices.events("pi-1")
        assert complaint.kind == "bad-message"
        assert (len(kept.kind), len(kept.message), kept.detail) == (63, 2000, {})
        assert side.controller.devices.inbox.failures == 0


async def test_report_that_json_cannot_hold_breaks_no_rollout(tmp_path):
    """A device that reports NaN does not block the survey of the others."""
    async with ControlSide(tmp_path) as side:
        side.publish("digits", "1.0.0")
        bad, good = await side.device("pi-bad"), await side.device("pi-good")
        outcome = Outcome("a" * 64, "1.0.0", "refused", at=float("nan"))
        await bad.report(outcomes={"digits": outcome})
        await side.until(lambda: events(side, "pi-bad") == ["bad-message"])
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert good.models


async def test_command_is_signed_sent_once_and_answered(tmp_path):
    """An operator's command reaches the device with the director's signature; the answer is stored."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await side.until(lambda: view(side).online)
        now = side.clock.wall()
        asked = side.state.commands.add("pi-1", "self-test", now=now, expires=now + 60)
        await side.until(lambda: side.state.commands.get("pi-1", asked.number).state == "done")
        answered = side.state.commands.get("pi-1", asked.number)
        assert answered.ok
        assert answered.message == "all golden rows agree"
        assert len(device.commands) == 1
        command = open_envelope(device.commands[0], Command, side.director.public_key)
        assert (command.device, command.fleet, command.kind) == ("pi-1", FLEET, "self-test")
        assert not [topic for topic in side.broker.retained if topic.endswith("/command")]


async def test_commands_for_many_devices_are_marked_together(tmp_path):
    """One write for all that were sent: each write waits for the disk, and for those of other controllers."""
    async with ControlSide(tmp_path) as side:
        names = [f"pi-{number}" for number in range(20)]
        for name in names:
            await side.device(name)
        await side.until(lambda: all(view(side, name).online for name in names))
        marks = []

        def note(connection, cursor, statement, *rest):
            if statement.startswith("UPDATE commands SET state") and "message" not in statement:
                marks.append(statement)

        sa.event.listen(side.state.devices._engine, "before_cursor_execute", note)
        now = side.clock.wall()
        asked = side.state.commands.add_all("self-test", {name: {} for name in names}, now=now, expires=now + 60)
        await side.until(lambda: all(side.state.commands.get(one.device, one.number).state == "done" for one in asked))
        assert len(marks) == 1


async def test_command_waits_for_the_device_and_runs_out(tmp_path):
    """A command to an offline device is sent when the device connects, and is marked when it expires."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await device.say("presence", encode(Presence(online=False, session=1)), retain=True)
        await side.until(lambda: view(side).seen and not view(side).online)
        now = side.clock.wall()
        late = side.state.commands.add("pi-1", "self-test", now=now, expires=now + 0.05)
        await side.until(lambda: side.state.commands.get("pi-1", late.number).state == "expired")
        asked = side.state.commands.add("pi-1", "self-test", now=now, expires=now + 60)
        assert asked.number > late.number
        await device.say("presence", encode(Presence(online=True, session=2)), retain=True)
        await side.until(lambda: side.state.commands.get("pi-1", asked.number).state == "done")
        assert len(device.commands) == 1


async def test_answer_that_nobody_asked_for_changes_nothing(tmp_path):
    """A result with an unknown number, or of another device, completes no command."""
    async with ControlSide(tmp_path) as side:
        device, other = await side.device("pi-1"), await side.device("pi-2")
        await device.say("presence", encode(Presence(online=False, session=1)), retain=True)
        await side.until(lambda: view(side).seen and not view(side).online)
        now = side.clock.wall()
        asked = side.state.commands.add("pi-1", "self-test", now=now, expires=now + 60)
        await other.say("result", seal(Result("pi-2", asked.number, True, "forged"), other.signer))
        await device.say("result", seal(Result("pi-1", asked.number + 1, True, "forged"), device.signer))
        await device.say("telemetry", encode(Telemetry("pi-1", 2.0, 60.0, {})))
        await side.until(lambda: view(side).telemetry)
        assert side.state.commands.get("pi-1", asked.number).state == "asked"


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


async def test_a_standby_keeps_messages_and_stores_them_when_it_leads(tmp_path):
    """What came while the leader had ended is not lost; what is older than HELD_SECONDS is."""
    leading = True
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await device.report(facts={"n": 1})
        await side.until(lambda: view(side).facts == {"n": 1})
        service = side.controller.devices
        service.inbox._leading = lambda: leading
        leading = False
        for number, kind in enumerate(("old", "new")):
            event = seal(Event("pi-1", kind, float(number + 1)), device.signer)
            await device.say("event", event)
        await side.until(lambda: len(service.inbox._waiting) == 2)
        service.inbox._waiting[0] = service.inbox._waiting[0]._replace(at=side.clock.wall() - HELD_SECONDS - 1.0)
        await device.report(number=70, facts={"n": 70})
        await side.until(lambda: any("reported" in one.message.topic for one in service.inbox._waiting))
        assert events(side) == []
        leading = True
        service.leading_changed(True)
        await side.until(lambda: view(side).facts == {"n": 70})
        assert events(side) == ["new"]


async def test_messages_that_cannot_be_stored_now_are_stored_later_once_and_in_order(tmp_path):
    """The database goes away in the middle of a batch."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await side.until(lambda: view(side).online)
        service, calls = side.controller.devices, []
        handle = service._handle

        def failing(arrived, batch):
            calls.extend([arrived] if arrived.message.topic.endswith("/event") else [])
            if len(calls) == 3:
                raise UnavailableError("the database did not answer")
            handle(arrived, batch)

        service._handle = failing
        for number in range(5):
            await device.say("event", seal(Event("pi-1", f"kind-{number}", float(number + 1)), device.signer))
        await side.until(lambda: len(events(side)) == 5)
        assert events(side) == [f"kind-{number}" for number in (4, 3, 2, 1, 0)]
        assert len(calls) > 5  # those before the failure were handled again, and stored once


async def test_messages_that_come_together_are_stored_in_few_transactions(tmp_path):
    """A transaction costs far more than a message in it."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        await side.until(lambda: view(side).online)
        writes = []
        sa.event.listen(side.state.devices._engine, "commit", lambda one: writes.append(_writes(one)))
        for number in range(1, 61):
            telemetry = Telemetry("pi-1", 0.0, 60.0, {"n": 1.0}, session=1, number=number)
            await device.say("telemetry", encode(telemetry))
        await device.report(number=60, facts={"n": 60})
        await side.until(lambda: view(side).facts == {"n": 60})
        (hour,) = side.state.telemetry.hours("pi-1")
        assert hour.body.counters == {"n": 60.0}
        assert sum(writes) < 20


async def test_a_message_that_the_database_refuses_costs_no_other_one(tmp_path):
    """All of a batch are tried again, each alone; an event says what was refused, once."""
    async with ControlSide(tmp_path) as side:
        device, other = await side.device("pi-1"), await side.device("pi-2")
        await side.until(lambda: view(side).online and view(side, "pi-2").online)
        table, add = side.state.telemetry, side.state.telemetry.add_all

        def refusing(messages, now):
            if any(one.telemetry.device == "pi-1" for one in messages):
                raise DataError("the database refuses a value")
            return add(messages, now)

        table.add_all = refusing
        for one in (device, other):
            await one.say("telemetry", encode(Telemetry(one.name, 0.0, 60.0, {"n": 1.0}, session=1, number=1)))
            await one.say("event", seal(Event(one.name, "seen", 1.0), one.signer))
        await side.until(lambda: events(side) == ["seen", "bad-message"] or events(side) == ["bad-message", "seen"])
        await side.until(lambda: events(side, "pi-2") == ["seen"])
        await side.until(lambda: side.state.telemetry.hours("pi-2"))
        assert side.state.telemetry.hours("pi-1") == []
        assert side.controller.devices.inbox.failures == 0


def _writes(connection):
    return bool(connection.get_execution_options().get("writes"))


async def test_a_command_that_the_broker_cannot_carry_fails_alone(tmp_path):
    """It gets an answer with both sizes, and the commands of other devices are sent."""
    async with ControlSide(tmp_path) as side:
        for name in ("pi-1", "pi-2"):
            await side.device(name)
        await side.until(lambda: view(side, "pi-1").online and view(side, "pi-2").online)
        side.broker.packet_limit = 700
        now = side.clock.wall()
        keys = ("heartbeat_seconds", "telemetry_seconds", "deadline_ms", "probation_seconds")
        values = dict.fromkeys(keys, "9." + "0" * 188)
        big = side.state.commands.add("pi-1", "set", now=now, expires=now + 60, args={"values": values})
        small = side.state.commands.add("pi-2", "self-test", now=now, expires=now + 60)
        await side.until(lambda: side.state.commands.get("pi-2", small.number).state == "done")
        found = side.state.commands.get("pi-1", big.number)
        assert (found.state, found.ok) == ("done", False)
        assert "and the broker accepts 700" in found.message


async def test_alarms_of_a_model_end_when_it_is_uninstalled(tmp_path):
    """No hour and no drift event of it follows; alarms of other models stay."""
    async with ControlSide(tmp_path) as side:
        device = await side.device("pi-1")
        for model in ("digits", "faces"):
            drift = Event("pi-1", "drift", 1.0, model, "input.x", "it moved", {"subject": "input.x"})
            await device.say("event", seal(drift, device.signer))
        await side.until(lambda: len(side.state.alarms.all("pi-1")) == 2)
        gone = Event("pi-1", "uninstalled", 2.0, "digits", detail={"version": "1.0.0"})
        await device.say("event", seal(gone, device.signer))
        await side.until(lambda: "uninstalled" in events(side))
        assert [one.model for one in side.state.alarms.all("pi-1")] == ["faces"]

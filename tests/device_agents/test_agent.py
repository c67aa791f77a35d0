"""The agent with an in-memory broker, disk and controller: deployments, reports, commands and events."""

import asyncio
import random
import re
import time

import msgspec

from device_agents.condition.rules import Condition
from device_agents.deployment import UpdateState
from device_agents.download.options import DownloadOptions
from device_agents.options import AgentTimings
from device_agents.storage.slots import Pointer, Slots
from device_agents.update.probation import ProbationLimits
from edgekit.hours import Hours
from edgekit.mqtt import messages, topics
from edgekit.trust.envelopes import open_envelope
from edgekit.trust.keys import generate_key
from tests.simulators.device import DEVICE, FLEET


async def reports(device, holds):
    """Wait until the retained report satisfies `holds`."""
    topic = topics.device(FLEET, DEVICE, "reported")
    await device.until(lambda: topic in device.broker.retained and holds(device.reported()))
    return device.reported()


def told(report):
    """The outcome that a report tells; an empty one before the first."""
    return report.outcomes.get("digits", messages.Outcome("", "", ""))


async def test_an_assignment_ends_in_a_committed_bundle_and_a_signed_report(desk, device):
    """Pull, verify, stage, test, activate, commit, report: the whole way over a broker."""
    entry = desk.publish("1.0.0")
    desk.assign(entry)
    await device.settled("1.0.0")
    assert device.inference.live == {"digits": "1.0.0"}
    report = await reports(device, lambda r: r.outcomes and r.models["digits"].state == "IDLE")
    assert report.models["digits"].digest == entry.sha256
    assert report.outcomes["digits"].result == "succeeded"
    assert (report.assignment, report.facts) == (1, {"arch": "aarch64"})
    assert Slots(device.disk, "digits").pointer() == Pointer("a", "a")
    assert device.disk.list("incoming") == []


async def test_the_end_of_an_update_takes_one_report(desk, device):
    """It tells the outcome and that the device rests; two reports would cost the controller another verification."""
    await device.until(lambda: desk.said("reported"))
    before = len(desk.said("reported"))
    desk.assign(desk.publish("1.0.0"))
    await reports(device, lambda r: r.outcomes)
    sent = [open_envelope(one, messages.Reported, device.signer.public_key) for one in desk.said("reported")[before:]]
    assert sent[-1].models["digits"].state == "IDLE"
    assert all(one.models["digits"].state != "CLEANING" for one in sent)


async def test_a_second_version_goes_to_the_other_slot_and_fetches_only_what_differs(desk, device):
    """The old bundle stays whole beside the new one, and blocks that both share are not sent again."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    desk.blocks_sent = 0
    desk.assign(desk.publish("2.0.0"))
    await device.settled("2.0.0")
    assert device.inference.history == ["1.0.0", "2.0.0"]
    assert Slots(device.disk, "digits").pointer() == Pointer("b", "b")
    assert device.disk.exists("models/digits/a/manifest.json")
    assert desk.blocks_sent == 5 + 1  # and the manifest; golden.npz came from slot a


async def test_blocks_that_get_lost_doubled_and_reordered_still_make_the_bundle(desk, device):
    """The network may do what it likes to QoS 0 messages."""
    desk.broker.drop, desk.broker.duplicate, desk.broker.reorder = 0.1, 0.2, 0.3
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")


async def test_a_tampered_blob_is_refused_naming_both_digests(desk, device):
    """A block that is wrong again and again ends the deployment; the running model stays."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    entry = desk.publish("1.2.0")
    desk.tamper = lambda digest, index, data: bytes(len(data)) if index == 2 and digest != entry.sha256 else data
    desk.assign(entry)
    report = await reports(device, lambda r: told(r).version == "1.2.0")
    outcome = report.outcomes["digits"]
    assert (outcome.result, outcome.error) == ("refused", "DigestMismatchError")
    assert "expected sha256" in outcome.message
    assert "found" in outcome.message
    await device.settled("1.0.0")
    assert device.inference.history == ["1.0.0"]
    assert not device.disk.exists("models/digits/b")
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    assert [event.kind for event in events] == ["deployment-succeeded", "deployment-refused"]
    assert events[-1].at == device.agent.states["digits"].outcome.at, "the controller knows it by this time"


async def test_one_wrong_block_is_asked_for_again(desk, device):
    """A passing fault of the network is mended and not punished."""
    wrong = [True]

    def once(digest, index, data):
        return bytes(len(data)) if index == 2 and wrong and wrong.pop() is not None else data

    desk.tamper = once
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    assert not wrong


async def test_a_failed_self_test_refuses_the_bundle_before_it_ever_runs(desk, device):
    """The staged bundle fails its golden samples: refused, not rolled back, and not tried again by itself."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.refused.add("1.1.0")
    desk.assign(desk.publish("1.1.0"))
    report = await reports(device, lambda r: told(r).version == "1.1.0" and r.models["digits"].state == "IDLE")
    assert (report.outcomes["digits"].result, report.outcomes["digits"].error) == ("refused", "SelfTestError")
    assert report.models["digits"].version == "1.0.0"
    assert device.inference.history == ["1.0.0"]


async def test_a_model_that_fails_in_probation_is_rolled_back(desk, device):
    """The bundle passed its test but not probation: known-good answers again, at once and after a restart."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.inference.dying.add("1.1.0")
    desk.assign(desk.publish("1.1.0"))
    report = await reports(device, lambda r: told(r).result == "rolled-back")
    assert report.outcomes["digits"].version == "1.1.0"
    await device.settled("1.0.0")
    assert device.inference.history == ["1.0.0", "1.1.0", "1.0.0"]
    assert Slots(device.disk, "digits").pointer() == Pointer("a", "a")


async def test_a_model_that_fails_live_traffic_is_rolled_back_though_its_golden_answers_are_right(desk, device):
    """At once, and not when its time is over; the report says how many requests failed, and how many may."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.inference.flaky.add("1.1.0")
    await device.stop()
    device.limits = msgspec.structs.replace(device.limits, probation_seconds=600.0)
    await device.start()
    desk.assign(desk.publish("1.1.0"))
    report = await reports(device, lambda r: told(r).result == "rolled-back")
    assert "failed in the runtime" in report.outcomes["digits"].message
    assert "at most 5.0% may" in report.outcomes["digits"].message
    await device.settled("1.0.0")
    assert device.inference.history == ["1.0.0", "1.0.0", "1.1.0", "1.0.0"]  # the second by the restart


async def test_a_few_failed_requests_are_judged_at_the_end_of_probation(desk, device):
    """A quiet device: too few requests to judge at once, but half of them failed."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.inference.flaky.add("1.1.0")
    device.inference.failing = 1
    desk.assign(desk.publish("1.1.0"))
    report = await reports(device, lambda r: told(r).version == "1.1.0")
    assert report.outcomes["digits"].result == "rolled-back"
    assert "failed in the runtime" in report.outcomes["digits"].message


async def test_enough_good_answers_end_probation_before_its_time(desk, device):
    """A busy device need not wait."""
    await device.stop()
    device.limits = msgspec.structs.replace(device.limits, probation_seconds=600.0)
    device.options = {"probation": ProbationLimits(max_error_share=1.0, requests=4)}
    await device.start()
    device.inference.flaky.add("1.0.0")
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")


class Counted(set):
    """A set that counts how often something was found in it."""

    found = 0

    def __contains__(self, item):
        inside = super().__contains__(item)
        self.found += inside
        return inside


async def test_a_rollback_that_cannot_load_yet_is_repeated_and_its_slot_counts_as_good(desk, device):
    """No memory at the moment, for example: only wrong bytes make a slot bad, and nothing is fetched again."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.inference.dying.add("2.0.0")
    device.inference.broken = Counted({"1.0.0"})
    desk.assign(desk.publish("2.0.0"))
    await device.until(lambda: device.inference.broken.found >= 2)
    sent = desk.blocks_sent
    device.inference.broken.clear()
    await device.settled("1.0.0")
    assert device.inference.live == {"digits": "1.0.0"}
    assert (device.state.outcome.version, device.state.outcome.result) == ("2.0.0", "rolled-back")
    assert desk.blocks_sent == sent
    events = [open_envelope(p, messages.Event, device.signer.public_key).kind for p in desk.said("event")]
    assert "slot-damaged" not in events


async def test_a_first_bundle_that_fails_in_probation_leaves_none(desk, device):
    """Without a known-good bundle the device is as empty as before."""
    device.inference.dying.add("1.0.0")
    desk.assign(desk.publish("1.0.0"))
    await reports(device, lambda r: r.outcomes and r.outcomes["digits"].result == "rolled-back")
    await device.settled()
    assert device.inference.live == {}
    assert Slots(device.disk, "digits").pointer() == Pointer()


async def test_what_does_not_fit_is_refused_with_every_reason(desk, device):
    """Compatibility is judged before the first block is fetched."""
    device.mismatches = ["arch is aarch64, needs x86_64", "memory is 512 MiB, needs 1024"]
    desk.assign(desk.publish("1.0.0"))
    report = await reports(device, lambda r: r.outcomes)
    assert report.outcomes["digits"].error == "CompatibilityError"
    assert all(reason in report.outcomes["digits"].message for reason in device.mismatches)


async def test_an_older_release_is_refused(desk, device):
    """The director may not take a device back."""
    old, new = desk.publish("1.0.0"), desk.publish("2.0.0")
    desk.assign(new)
    await device.settled("2.0.0")
    desk.assign(old)
    report = await reports(device, lambda r: told(r).version == "1.0.0")
    assert (report.outcomes["digits"].result, report.outcomes["digits"].error) == ("refused", "DowngradeError")
    assert report.models["digits"].version == "2.0.0"


async def test_an_assignment_of_another_key_or_device_is_not_followed(desk, device, tmp_path):
    """Each is reported once as an event, and changes nothing."""
    entry = desk.publish("1.0.0")
    desk.assign(entry, signer=generate_key(tmp_path / "stranger.key"))
    await device.until(lambda: len(desk.said("event")) == 1)
    desk.assign(entry, device="d2")
    await device.until(lambda: len(desk.said("event")) == 2)
    desk.assign(entry, seconds=-10)
    await device.until(lambda: len(desk.said("event")) == 3)
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    assert [event.error for event in events] == ["SignatureError", "VerificationError", "ExpiredError"]
    assert device.agent.states == {}


async def test_a_newer_offer_supersedes_a_transfer(desk, device):
    """The device does not finish what nobody wants any more."""
    first, second = desk.publish("1.0.0"), desk.publish("2.0.0")
    kept = first.sha256
    desk.tamper = lambda digest, index, data: data if digest == kept else None
    desk.assign(first)
    await device.until(lambda: device.state and device.state.name is UpdateState.DOWNLOADING)
    desk.assign(second)
    await device.until(lambda: device.state.deployment.version == "2.0.0")
    desk.tamper = lambda digest, index, data: data
    await device.settled("2.0.0")
    assert device.inference.history == ["2.0.0"]


async def test_while_the_broker_is_away_the_transfer_waits_and_then_resumes(desk, device):
    """Nothing that was verified is fetched again."""
    desk.broker.tap = lambda client, message: [] if _after_block(message, 2) else [message]
    desk.assign(desk.publish("1.0.0"))
    await device.until(lambda: desk.blocks_sent >= 4)
    desk.broker.stop()
    desk.broker.tap = None
    await device.until(lambda: device.state.note.startswith("TransportError"))
    assert device.inference.live == {}
    sent = desk.blocks_sent
    desk.broker.start()
    await device.settled("1.0.0")
    assert desk.blocks_sent - sent < 6


def _after_block(message, index):
    if not message.topic.endswith(f"/answer/{DEVICE}"):
        return False
    return messages.decode(message.payload, messages.Answer).index > index


async def test_a_restart_serves_what_is_installed_before_there_is_a_broker(desk, device):
    """Local answers need no network and no fresh metadata."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    await device.stop()
    desk.broker.stop()
    device.inference.live.clear()
    await device.start()
    assert device.inference.live == {"digits": "1.0.0"}
    desk.broker.start()


async def test_reports_rise_over_restarts_and_presence_tells_the_session(desk, device):
    """So that a listener can tell an older report, and an older will."""
    await device.until(lambda: desk.said("reported"))
    before = device.reported().number
    await device.stop()
    await device.start()
    await device.until(lambda: device.reported().number > before)
    presences = [messages.decode(p, messages.Presence) for p in desk.said("presence")]
    assert [(p.online, p.session) for p in presences] == [(True, 1), (False, 1), (True, 2)]


async def test_a_model_that_the_assignment_no_longer_names_keeps_serving(desk, device):
    """Removal is not built yet; what runs is still reported."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    desk.assign()
    report = await reports(device, lambda r: r.assignment == 2)
    assert report.models["digits"].version == "1.0.0"
    assert device.inference.live == {"digits": "1.0.0"}


async def test_the_self_test_command_is_obeyed_once_and_its_result_signed(desk, device):
    """A command that is repeated, stale or unknown is not obeyed."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    desk.command("self-test")
    await device.until(lambda: len(desk.said("result")) == 1)
    desk.command("self-test", number=1)
    desk.command("self-test", number=7, seconds=-1)
    desk.command("reboot", number=8)
    device.inference.dying.add("1.0.0")
    desk.command("self-test", number=9)
    await device.until(lambda: len(desk.said("result")) == 3)
    results = [open_envelope(p, messages.Result, device.signer.public_key) for p in desk.said("result")]
    assert [(r.number, r.ok) for r in results] == [(1, True), (8, False), (9, False)]
    assert "scores differ" in results[2].message
    refused = [open_envelope(p, messages.Event, device.signer.public_key).kind for p in desk.said("event")]
    assert refused.count("command-refused") == 2


async def test_a_retained_command_is_dropped(desk, device):
    """The broker keeps it for ever; the device drops it at each connect, although it is signed and has not expired."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    await device.stop()
    desk.command("self-test", number=5)
    stored = desk.said("command")[-1]
    desk.broker.retained[topics.device(FLEET, DEVICE, "command")] = stored
    await device.start()
    await device.until(lambda: device.agent._counters()["agent.dropped_messages"] == 1.0)
    desk.command("self-test", number=4)
    await device.until(lambda: desk.said("result"))
    (result,) = [open_envelope(p, messages.Result, device.signer.public_key) for p in desk.said("result")]
    assert (result.number, result.ok) == (4, True)


async def test_telemetry_carries_counters(desk, device):
    """Counters of inference and of the agent, since the last message."""
    await device.until(lambda: len(desk.said("telemetry")) >= 2)
    first, second = (messages.decode(p, messages.Telemetry) for p in desk.said("telemetry")[:2])
    assert first.counters["digits.local"] == 3.0
    assert second.counters["digits.local"] == 0.0


async def test_hints_hold_a_new_deployment_until_the_fleet_goes_on(desk, device):
    """A paused fleet changes nothing, and goes on by itself."""
    hints = topics.fleet_hints(FLEET)
    desk.broker.publish(hints, messages.encode(messages.FleetHints(paused=True)), qos=1, retain=True)
    desk.assign(desk.publish("1.0.0"))
    await reports(device, lambda r: r.assignment == 1 or device.agent._journal.record.assignment == 1)
    assert device.agent.states == {}
    desk.broker.publish(hints, messages.encode(messages.FleetHints()), qos=1, retain=True)
    await device.settled("1.0.0")


async def test_metadata_answers_that_make_no_sense_do_not_end_the_agent(desk, device):
    """A hostile broker or controller does not end the agent, which tries again."""
    await device.stop()
    device.timings = AgentTimings(assignment_retry_seconds=(0.01, 0.1))
    await device.start()
    nonsense = [
        messages.Answer("", 5, 3, b"x"),
        messages.Answer("", 0, 0, b"x"),
        messages.Answer("", error="bad-request"),
    ]

    def twist(client, message):
        if client != DEVICE or not nonsense or not message.topic.endswith(f"/answer/{DEVICE}"):
            return [message]
        wrong = msgspec.structs.replace(nonsense.pop(), id=messages.decode(message.payload, messages.Answer).id)
        return [msgspec.structs.replace(message, payload=messages.encode(wrong))]

    desk.broker.tap = twist
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    assert not nonsense
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    assert ("assignment-delayed", "DataError") in [(event.kind, event.error) for event in events]


async def test_what_was_fetched_and_what_was_reused_is_counted(desk, device):
    """A retrained model costs only the blocks that changed, and telemetry says so."""
    model = random.Random(1).randbytes(5 * 65536)
    desk.assign(desk.publish("1.0.0", model))
    await device.settled("1.0.0")
    desk.blocks_sent = 0
    desk.assign(desk.publish("2.0.0", model[:65536] + b"changed" + model[65536 + 7 :]))
    await device.settled("2.0.0")
    assert desk.blocks_sent == 1 + 1  # and the manifest

    def total(name):
        sent = [messages.decode(payload, messages.Telemetry) for payload in desk.said("telemetry")]
        return sum(one.counters[f"agent.{name}"] for one in sent)

    await device.until(lambda: total("blocks_reused") == 4 + 1)
    assert (total("blocks_fetched"), total("bytes_fetched")) == (6 + 1, 6 * 65536 + len(b"golden"))


async def test_a_deployment_that_burns_its_byte_budget_fails_for_good(desk, device):
    """A link that damages most blocks may not cost the owner without end."""
    await device.stop()
    device.options = {"download": DownloadOptions(download_budget=1.0)}
    await device.start()
    entry, seen = desk.publish("1.0.0", random.Random(1).randbytes(40 * 65536)), set()

    def damage_once(digest, index, data):
        if digest == entry.sha256 or (digest, index) in seen:
            return data
        seen.add((digest, index))
        return bytes(len(data))

    desk.tamper = damage_once
    desk.assign(entry)
    report = await reports(device, lambda r: r.outcomes)
    assert (report.outcomes["digits"].result, report.outcomes["digits"].error) == ("failed", "RefusedError")
    await device.settled()
    assert desk.blocks_sent < 40 + 16 + 16 + 4  # the budget, its spare megabyte, and what was under way


async def test_blocks_that_come_twice_count_for_the_byte_budget(desk, device):
    """The owner pays for them too."""
    await device.stop()
    device.options = {"download": DownloadOptions(download_budget=1.0)}
    await device.start()
    desk.broker.duplicate = 1.0
    desk.assign(desk.publish("1.0.0", random.Random(1).randbytes(40 * 65536)))
    report = await reports(device, lambda r: r.outcomes)
    assert (report.outcomes["digits"].result, report.outcomes["digits"].error) == ("failed", "RefusedError")


async def test_in_quiet_hours_nothing_is_downloaded(desk, device):
    """The deployment waits, and the controller knows why."""
    await device.stop()
    now = time.localtime()
    minute = now.tm_hour * 60 + now.tm_min
    quiet_hours = Hours((minute - 30) % 1440, (minute + 30) % 1440)
    device.options = {"download": DownloadOptions(quiet_hours=quiet_hours)}
    await device.start()
    desk.assign(desk.publish("1.0.0"))
    await device.until(lambda: len(desk.said("event")) == 1)
    event = open_envelope(desk.said("event")[0], messages.Event, device.signer.public_key)
    assert (event.kind, event.error) == ("deployment-delayed", "QuietHoursError")
    assert "quiet hours" in event.message
    assert desk.blocks_sent == 0
    report = await reports(device, lambda r: "digits" in r.models and r.models["digits"].waiting)
    waiting = report.models["digits"].waiting
    assert (waiting.reason, waiting.digest) == ("quiet-hours", device.state.deployment.digest)
    assert 0 < waiting.since <= time.time()
    asked, attempts = metadata_requests(desk), device.state.attempts
    await device.until(lambda: device.state.attempts >= attempts + 3)
    assert metadata_requests(desk) == asked


def metadata_requests(desk):
    return sum("/request/metadata/" in message.topic for message in desk.broker.published)


async def test_a_changed_condition_is_reported_at_once(desk, device):
    """The heartbeat is a minute away; a hotter device reports, and the facts of its start stay."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    device.condition = Condition(temperature_celsius=81, throttled="throttled")
    report = await reports(device, lambda r: r.facts.get("throttled") == "throttled")
    assert report.facts == {"arch": "aarch64", "temperature_celsius": 81, "throttled": "throttled"}


async def test_an_unknown_command_and_wrong_arguments_are_answered(desk, device):
    """An embedded agent offers only commands that need nothing around it, and says so."""
    for number, (kind, args) in enumerate([("restart", {}), ("self-test", {"file": "x"})], start=1):
        desk.command(kind, number=number, args=args)
    await device.until(lambda: len(desk.said("result")) == 2)
    first, second = (open_envelope(one, messages.Result, device.signer.public_key) for one in desk.said("result"))
    assert (first.ok, first.message) == (False, "unknown command 'restart', this agent knows: collect, self-test")
    assert (second.ok, "DataError" in second.message) == (False, True)


async def test_a_result_waits_for_the_broker(desk, device, monkeypatch):
    """The connection breaks while a command runs; its result is sent at the next one."""
    began, go = asyncio.Event(), asyncio.Event()

    async def slow(model):
        began.set()
        await go.wait()

    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    monkeypatch.setattr(device.inference, "self_test", slow)
    desk.command("self-test")
    await began.wait()
    desk.broker.cut(DEVICE, hold=True)
    go.set()
    await asyncio.sleep(0.05)
    assert desk.said("result") == []
    desk.broker.restore(DEVICE)
    await device.until(lambda: desk.said("result"))
    assert open_envelope(desk.said("result")[0], messages.Result, device.signer.public_key).ok


async def test_what_a_killed_measurement_left_is_removed_at_the_next_start(desk, device):
    """The agent was killed while `profile` ran: its downloaded bundle is nothing that the device runs."""
    await device.stop()
    device.disk.write("profiling/model.tflite", b"x" * 1000)
    await device.start()
    assert not device.disk.exists("profiling/model.tflite")


async def test_a_report_that_the_broker_cannot_carry_is_an_event_once(desk, device, caplog):
    """Otherwise the control side sees a silent device; both sizes and the setting are named."""
    await reports(device, lambda report: True)
    device.broker.packet_limit = 1500
    for number, filling in enumerate("xyz"):
        device.condition = Condition(throttled=filling * 3000)
        await device.until(lambda count=number: caplog.text.count("reported is dropped") > count)
    await device.until(lambda: desk.said("event"))
    told = [open_envelope(one, messages.Event, device.signer.public_key) for one in desk.said("event")]
    assert [(one.kind, one.error) for one in told] == [("report-too-large", "PacketTooLargeError")]
    assert "the broker accepts 1500. Set the broker's maximum packet size to 327680" in told[0].message


async def test_an_expired_command_is_refused_with_the_time_that_the_clock_shows(desk, device):
    """A device whose clock is ahead refuses every command; its event says so."""
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    desk.command("self-test", seconds=-100)
    kind = b"command-refused"
    await device.until(lambda: any(kind in one for one in desk.said("event")))
    (payload,) = [one for one in desk.said("event") if kind in one]
    event = open_envelope(payload, messages.Event, device.signer.public_key)
    assert event.error == "ExpiredError"
    assert re.match(r"command 1 expired 1\d\d s ago by this device's clock, which shows 20\d\d-", event.message)
    assert desk.said("result") == []

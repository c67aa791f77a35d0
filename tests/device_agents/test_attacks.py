"""Attacks on the whole agent: each changes nothing, is reported by name, and the agent works afterwards.

Attacks on metadata alone are in tests/edgekit/trust, on manifests in tests/edgekit/bundle.
"""

import asyncio
import json

import msgspec
import pytest
from tuf.api.metadata import Metadata, TargetFile

from device_agents.control.link import MOST_EVENTS
from device_agents.options import AgentTimings
from edgekit.mqtt import messages, topics
from edgekit.registry import blob_name
from edgekit.trust.assignment import Entry
from edgekit.trust.envelopes import open_envelope
from edgekit.trust.keys import generate_key, key_path, load_signer
from edgekit.trust.repository import Repository
from edgekit.trust.rotation import KeyManager
from edgekit.trust.state import METADATA
from tests.simulators.device import DEVICE, FLEET, TARGET, Desk, Device
from tests.simulators.publisher import DAY, HeldClock
from tests.simulators.transport import MemoryBroker


@pytest.fixture
async def desk(tmp_path):
    made = Desk(tmp_path / "desk", MemoryBroker())
    await made.start()
    return made


@pytest.fixture
async def device(tmp_path, desk):
    """At rest with 1.0.0."""
    made = Device(tmp_path / "device", desk.broker, desk.root)
    made.timings = AgentTimings(assignment_retry_seconds=(0.02, 0.05), metadata_timeout_seconds=0.3)
    desk.assign(desk.publish("1.0.0"))
    await made.start()
    await made.settled("1.0.0")
    yield made
    await made.stop()


def told(desk, device, kind):
    events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
    return [event for event in events if event.kind == kind]


def check_unmoved(device):
    assert device.inference.history == ["1.0.0"]
    assert device.state.active.version == device.state.known_good.version == "1.0.0"


# --- the repository lies


def newest(desk, role):
    found = [name for name in desk.store.blobs if name.startswith(METADATA) and name.endswith(f".{role}.json")]
    return max(found, key=lambda name: int(name.removeprefix(METADATA).partition(".")[0]))


def edit(desk, name):
    document = json.loads(desk.store.blobs[name])
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    desk.store.blobs[name] = json.dumps(document).encode()


def old_timestamp(desk, old):
    desk.store.blobs[f"{METADATA}timestamp.json"] = old[f"{METADATA}timestamp.json"]


def old_snapshot_in_a_new_name(desk, old):
    name = newest(desk, "snapshot")
    desk.store.blobs[name] = next(data for key, data in sorted(old.items(), reverse=True) if ".snapshot." in key)


def expired(desk, old):
    past = HeldClock()
    past.now -= 30 * DAY
    Repository(desk.store, desk._folder / "keys", clock=past).refresh_timestamp(force=True)


def stolen_and_revoked_timestamp_key(desk, old):
    """A timestamp signed by the old key after its revocation, with a higher version."""
    stolen = Metadata.from_bytes(desk.store.blobs[f"{METADATA}timestamp.json"])
    keys = desk._folder / "keys"
    signer = load_signer(key_path(keys, "timestamp"))
    KeyManager(desk.store, keys).rotate("timestamp")
    stolen.signed.version += 100
    stolen.sign(signer)
    desk.store.blobs[f"{METADATA}timestamp.json"] = stolen.to_bytes()


async def test_a_stolen_director_key_gives_no_commands_after_its_rotation(desk, device):
    """Not even to a device that has got no assignment since; the new key does."""
    keys = desk._folder / "keys"
    KeyManager(desk.store, keys).rotate("director")
    desk.command("self-test")
    await device.until(lambda: desk.said("event"))
    await device.until(lambda: b"command-refused" in desk.said("event")[-1])
    assert b"SignatureError" in desk.said("event")[-1]
    desk.director = Repository(desk.store, keys).director()
    desk.command("self-test")
    await device.until(lambda: desk.said("result"))
    (result,) = (open_envelope(one, messages.Result, device.signer.public_key) for one in desk.said("result"))
    assert (result.number, result.ok) == (2, True)


LIES = {
    "edited timestamp": (lambda desk, old: edit(desk, f"{METADATA}timestamp.json"), "SignatureError"),
    "edited snapshot": (lambda desk, old: edit(desk, newest(desk, "snapshot")), "SignatureError"),
    "empty timestamp": (
        lambda desk, old: desk.store.blobs.update({f"{METADATA}timestamp.json": b"{}"}),
        "VerificationError",
    ),
    "endless timestamp": (
        lambda desk, old: desk.store.blobs.update({f"{METADATA}timestamp.json": b" " * 20_000}),
        "VerificationError",
    ),
    "rolled back timestamp": (old_timestamp, "DowngradeError"),
    "mix and match": (old_snapshot_in_a_new_name, "DowngradeError"),
    "frozen": (expired, "ExpiredError"),
    "revoked key": (stolen_and_revoked_timestamp_key, "SignatureError"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_repository_is_refused_and_told(desk, device, lie):
    """By name, in a signed event; nothing is fetched for it, and what runs goes on."""
    old = dict(desk.store.blobs)
    entry = desk.publish("2.0.0")
    await device.agent._effects.refresh()
    desk.publish("3.0.0")
    honest = dict(desk.store.blobs)
    change, error = LIES[lie]
    change(desk, old)
    desk.blocks_sent = 0
    desk.assign(entry)
    await device.until(lambda: told(desk, device, "assignment-refused"))
    assert {event.error for event in told(desk, device, "assignment-refused")} == {error}
    check_unmoved(device)
    assert desk.blocks_sent == 0
    if lie != "revoked key":  # its new root stays
        desk.store.blobs.update(honest)
        if lie == "frozen":
            Repository(desk.store, desk._folder / "keys").refresh_timestamp(force=True)
        desk.assign(entry)
        await device.settled("2.0.0")


async def test_withheld_metadata_is_waited_for(desk, device):
    """Nothing is believed meanwhile, and the order is followed when it is there again."""
    entry = desk.publish("2.0.0")
    name = newest(desk, "snapshot")
    held = desk.store.blobs.pop(name)
    desk.assign(entry)
    for _ in range(3):
        await device.until(lambda: not device.agent._effects.trust_lock.locked())
    check_unmoved(device)
    desk.store.blobs[name] = held
    await device.settled("2.0.0")


# --- the director's key is stolen


async def refused(device, assignment):
    await device.until(lambda: device.state.failed is not None and device.state.failed.assignment == assignment)
    await device.settled("1.0.0")
    check_unmoved(device)
    await device.until(lambda: device.reported().outcomes.get("digits") == device.state.outcome)
    return device.reported().outcomes["digits"]


@pytest.mark.parametrize(
    "lie",
    [
        {"path": "models/digits/raspberry-pi-4/9.9.9/manifest.json", "version": "9.9.9"},
        {"sha256": "0" * 64},
        {"length": 5},
        {"release": 7},
        {"target": "jetson-orin"},
    ],
    ids=lambda lie: "+".join(lie),
)
async def test_a_stolen_director_key_cannot_invent_a_bundle(desk, device, lie):
    """The catalogue must say the same of path, length, digest, target and release."""
    desk.assign(msgspec.structs.replace(desk.publish("2.0.0"), **lie))
    outcome = await refused(device, 2)
    assert (outcome.result, outcome.error) in {("refused", "VerificationError"), ("refused", "SignatureError")}
    assert not device.disk.exists("models/digits/b")


async def test_a_stolen_director_key_cannot_choose_what_does_not_fit(desk, device):
    """A genuine bundle for other hardware is refused with every reason."""
    device.mismatches = ["arch is aarch64, needs x86_64"]
    desk.assign(desk.publish("2.0.0"))
    assert (await refused(device, 2)).error == "CompatibilityError"


# --- the broker is hostile


async def test_a_broker_that_replays_an_older_order_is_refused(desk, device):
    """The highest version that was accepted is in the journal, also after a restart."""
    older = desk.assign(desk.publish("2.0.0"))
    await device.settled("2.0.0")
    desk.assign(desk.publish("3.0.0"))
    await device.settled("3.0.0")
    for _ in range(2):
        count = len(told(desk, device, "assignment-refused"))
        desk.broker.publish(topics.device(FLEET, DEVICE, "desired"), older, qos=1, retain=True)
        await device.until(lambda count=count: len(told(desk, device, "assignment-refused")) > count)
        assert told(desk, device, "assignment-refused")[-1].error == "DowngradeError"
        await device.stop()
        await device.start()
    assert device.state.active.version == "3.0.0"


async def test_a_broker_that_swaps_the_orders_of_two_devices_is_refused(desk, device):
    """An order names its device and fleet under the signature."""
    desk.assign(desk.publish("2.0.0"), device="d2")
    await device.until(lambda: told(desk, device, "assignment-refused"))
    (event,) = told(desk, device, "assignment-refused")
    assert (event.error, "'d2'" in event.message) == ("VerificationError", True)
    check_unmoved(device)


async def test_a_flood_is_dropped_and_the_true_order_is_followed(desk, device, tmp_path):
    """Forged orders, commands, answers and hints, thousands of each; one event for each reason, and no memory kept."""
    stranger = generate_key(tmp_path / "stranger.key")
    forged = desk.assign(desk.publish("2.0.0"), signer=stranger)
    answer = messages.encode(messages.Answer("0" * 16, 0, 1, b"x" * 1000))
    for _ in range(2000):
        desk.broker.publish(topics.device(FLEET, DEVICE, "desired"), forged, qos=1)
        desk.broker.publish(topics.device(FLEET, DEVICE, "command"), b"\xff" * 100, qos=1)
        desk.broker.publish(topics.answer(FLEET, DEVICE), answer)
        desk.broker.publish(topics.answer(FLEET, DEVICE), b"\xc1")
        desk.broker.publish(topics.fleet_hints(FLEET), b"\xff", qos=1)
    await device.until(lambda: device.agent._requests.malformed >= 2000)
    assert device.agent._requests.foreign >= 2000
    assert len(told(desk, device, "assignment-refused")) <= 1
    check_unmoved(device)
    desk.assign(desk.publish("3.0.0"))
    await device.settled("3.0.0")
    assert 1 <= len(told(desk, device, "command-refused")) <= MOST_EVENTS


async def test_orders_of_many_faults_cause_few_events(desk, device):
    """Each is another document, so each is looked at; the other events of the device stay readable."""
    for number in range(3 * MOST_EVENTS):
        desk.broker.publish(topics.device(FLEET, DEVICE, "desired"), b"{" * (number + 1), qos=1)
        await asyncio.sleep(0.02)
    desk.assign(desk.publish("2.0.0"))
    await device.settled("2.0.0")
    assert len(told(desk, device, "assignment-refused")) == MOST_EVENTS


# --- the store is hostile


@pytest.mark.parametrize("change", [lambda d: bytes([d[0] ^ 1]) + d[1:], lambda d: d + b" ", lambda d: d[:-1]])
async def test_a_changed_manifest_is_refused(desk, device, change):
    """One bit, one byte more, one byte less: it does not have its digest."""
    entry = desk.publish("2.0.0")
    name = blob_name(entry.sha256)
    desk.store.blobs[name] = change(desk.store.blobs[name])
    desk.assign(entry)
    outcome = await refused(device, 2)
    assert (outcome.result, outcome.error) == ("refused", "DigestMismatchError")


def sign_truly(desk, path, data):
    """The attacker has the publisher's key, and skips edgekit's own checks."""
    state = desk.repository._committer.load()
    publisher = desk.repository._committer.next(state.publisher("digits"), "publisher")
    target = TargetFile.from_data(path, data, ["sha256"])
    identity = {"name": "digits", "target": TARGET, "version": "6.6.6", "release": 99}
    target.unrecognized_fields["custom"] = identity
    publisher.targets[path] = target
    desk.repository._committer.commit(state, {"publisher-digits": publisher})
    desk.store.blobs[blob_name(target.hashes["sha256"])] = data
    return Entry(path=path, length=len(data), sha256=target.hashes["sha256"], **identity)


HOSTILE = {
    "leaves the folder": lambda files: files[0].update(path="../../../journal/device.json"),
    "absolute": lambda files: files[0].update(path="/etc/passwd"),
    "a drive": lambda files: files[0].update(path="c:\\windows\\model.onnx"),
    "hides": lambda files: files[0].update(path=".model.onnx"),
    "the manifest itself": lambda files: files[0].update(path="manifest.json"),
    "twice": lambda files: files.append(files[0]),
    "twice but for case": lambda files: files.append({**files[0], "path": "MODEL.onnx", "role": "labels"}),
    "absurd size": lambda files: files[0].update(size=2**62),
    "size without blocks": lambda files: files[0].update(size=10 * 2**30),
    "negative": lambda files: files[0].update(size=-1),
    "too many": lambda files: files.extend({**files[0], "path": f"f{i}", "role": "labels"} for i in range(2000)),
}


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_hostile_manifest_that_is_truly_signed_makes_no_file(desk, device, hostile):
    """An attacker with a publisher's key still leaves no folder and fills no disk; the report names the fault."""
    document = json.loads(desk.store.blobs[blob_name(desk.publish("2.0.0").sha256)])
    HOSTILE[hostile](document["files"])
    document["version"] = "6.6.6"
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    before = set(device.disk.files)
    desk.assign(sign_truly(desk, f"models/digits/{TARGET}/6.6.6/manifest.json", data))
    outcome = await refused(device, 2)
    assert outcome.error == "ManifestError"
    assert outcome.message
    assert set(device.disk.files) == before

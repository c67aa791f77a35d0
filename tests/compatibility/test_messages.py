"""MQTT messages of earlier releases are decoded and verified, and refused after a change."""

import msgspec
import pytest

from edgekit.errors import ExpiredError, SignatureError
from edgekit.mqtt.messages import (
    Answer,
    BlocksRequest,
    BroadcastBlocks,
    BroadcastClaim,
    Command,
    Event,
    FleetHints,
    MetadataRequest,
    Presence,
    Reported,
    Result,
    Telemetry,
    decode,
)
from edgekit.storage.stores import open_store
from edgekit.trust.assignment import check_agrees
from edgekit.trust.client import TrustClient
from edgekit.trust.envelopes import open_envelope
from edgekit.trust.keys import load_public
from tests.simulators.releases import RELEASES

PLAIN = {
    "answer-block": Answer,
    "answer-busy": Answer,
    "answer-metadata": Answer,
    "answer-not-found": Answer,
    "answer-urls": Answer,
    "broadcast-blocks": BroadcastBlocks,
    "broadcast-claim": BroadcastClaim,
    "fleet": FleetHints,
    "presence": Presence,
    "request-blocks": BlocksRequest,
    "request-blocks-broadcast": BlocksRequest,
    "request-metadata": MetadataRequest,
    "telemetry": Telemetry,
}
BY_THE_DEVICE = {"event": Event, "reported": Reported, "result": Result}  # file names of events are event-KIND
ENVELOPES = [
    pytest.param(
        release, path.stem, BY_THE_DEVICE[path.stem.partition("-")[0]], id=f"{release.folder.name}-{path.stem}"
    )
    for release in RELEASES
    for path in sorted((release.folder / "messages").iterdir())
    if path.stem.partition("-")[0] in BY_THE_DEVICE
]
DAY = 86_400.0


@pytest.fixture
def client(release, tmp_path):
    """The trust client of a device at the time of the messages."""
    store = open_store(f"file://{release.control(tmp_path) / 'registry'}")
    root = (release.folder / "devices" / "pi-1" / "root.json").read_bytes()
    client = TrustClient(tmp_path / "tuf", root, lambda name: store.get(f"metadata/{name}"))
    client.refresh(release.made_at)
    return client


@pytest.fixture
def device_key(release):
    return load_public(release.folder / "devices" / "pi-1" / "device.pub")


def payload(release, name):
    return (release.folder / "messages" / f"{name}.bin").read_bytes()


def check_fields(message, raw):
    """Check that encoding the decoded message gives every field of the raw message; it may have further ones."""
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert only(fields, raw) == raw


def only(fields, raw):
    """`fields` without the keys that `raw` does not have, at every depth."""
    if isinstance(fields, dict) and isinstance(raw, dict):
        return {key: only(fields[key], value) for key, value in raw.items()}
    return fields


def test_every_kept_message_is_read_below(release):
    """Every stored message is used by a test below."""
    names = {path.stem for path in (release.folder / "messages").iterdir()}
    events = {name for name in names if name.startswith("event-")}
    assert events >= {"event-deployment-refused", "event-deployment-succeeded"}
    assert names - events == {*PLAIN, "reported", "result", "command", "desired"}


@pytest.mark.parametrize(("name", "kind"), PLAIN.items(), ids=PLAIN)
def test_unsigned_message_is_decoded(release, name, kind):
    """Requests, answers, broadcasts, hints, presence and telemetry decode with every field."""
    data = payload(release, name)
    check_fields(decode(data, kind), msgspec.msgpack.decode(data))


@pytest.mark.parametrize(("release", "name", "kind"), ENVELOPES)
def test_envelope_of_the_device_is_opened(release, device_key, name, kind):
    """The device's enrolled key verifies its events, reports and results."""
    data = payload(release, name)
    message = open_envelope(data, kind, device_key)
    check_fields(message, msgspec.msgpack.decode(msgspec.msgpack.decode(data)["body"]))
    assert message.device == "pi-1"


def test_what_the_device_reported(release, device_key):
    """The report has both models with their outcomes, and the release in its facts."""
    report = open_envelope(payload(release, "reported"), Reported, device_key)
    assert {name: running.version for name, running in report.models.items()} == {"digits": "1.1.0", "shapes": "1.0.0"}
    assert report.outcomes["shapes"].result == "refused"
    assert release.folder.name == f"release-{report.facts['edgekit']}"


def test_command_of_the_director_is_opened(release, client):
    """The director's key in the catalogue verifies the command."""
    command = open_envelope(payload(release, "command"), Command, client.director_key())
    assert (command.device, command.fleet, command.kind) == ("pi-1", "assets", "self-test")


def test_assignment_is_verified_and_agrees_with_the_catalogue(release, client):
    """The assignment verifies at its time and agrees with the catalogue; a year later it has expired."""
    data = payload(release, "desired")
    assignment = client.verify_assignment(data, "pi-1", "assets", release.made_at)
    assert {name: entry.version for name, entry in assignment.entries.items()} == {"digits": "1.1.0", "shapes": "1.1.0"}
    for entry in assignment.entries.values():
        check_agrees(entry, client.find_target(entry.path), seen_release=1)
    with pytest.raises(ExpiredError):
        client.verify_assignment(data, "pi-1", "assets", release.made_at + 365 * DAY)


@pytest.mark.parametrize("name", ["command", "reported"])
def test_envelope_with_a_changed_byte_is_refused(release, client, device_key, name):
    """A changed byte is a SignatureError, so the tests above do verify."""
    envelope = msgspec.msgpack.decode(payload(release, name))
    changed = msgspec.msgpack.encode({**envelope, "body": envelope["body"][:-1] + b"\x07"})
    with pytest.raises(SignatureError):
        open_envelope(changed, dict, client.director_key() if name == "command" else device_key)


def test_answers_hold_what_was_asked_for():
    """Answers contain a block, a metadata file, or the error not-found."""
    for release in RELEASES:
        block = decode(payload(release, "answer-block"), Answer)
        metadata = decode(payload(release, "answer-metadata"), Answer)
        assert (len(block.data) > 0, block.error) == (True, "")
        assert (metadata.data[:1], metadata.error) == (b"{", "")
        assert decode(payload(release, "answer-not-found"), Answer).error == "not-found"

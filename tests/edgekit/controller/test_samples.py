"""Parts of samples are joined, verified, stored once and acknowledged; hostile ones are refused and cost nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from edgekit.errors import DataError, StoreError
from edgekit.mqtt.messages import Answer, decode, encode
from edgekit.mqtt.sample_messages import SampleHead, SamplePart
from edgekit.mqtt.sample_parts import MAX_SAMPLE_BYTES, PART_BYTES, Assembly, check_part, part
from edgekit.samples.names import day_of, parse_name
from edgekit.samples.stored import decode_stored
from edgekit.trust.envelopes import seal
from tests.simulators.control import FLEET, ControlSide, FakeDevice
from tests.simulators.store import MemoryStore

ID = "4000000001" + "a" * 16
SEALED = bytes(range(256)) * 600  # three parts


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[ControlSide]:
    async with ControlSide(tmp_path) as side:
        await side.stop_controller()
        side.registry, side.store = side.store, MemoryStore()  # type: ignore[attr-defined]
        side.reader = lambda: None  # type: ignore[assignment,return-value]
        await side.start_controller()
        yield side


def head(signer: FakeDevice, sealed: bytes = SEALED, **fields: object) -> bytes:
    values = {
        "device": signer.name,
        "fleet": FLEET,
        "id": ID,
        "model": "m",
        "digest": "d" * 64,
        "at": 5.0,
        "size": len(sealed),
        "sha256": hashlib.sha256(sealed).hexdigest(),
        **fields,
    }
    return seal(SampleHead(**values), signer.signer)  # type: ignore[arg-type]


async def send(side: ControlSide, device: FakeDevice, *parts: SamplePart) -> list[Answer]:
    """Send parts; the answers to them."""
    before = len(device.answers)
    for one in parts:
        await device.say("sample", encode(one))
    samples = side.controller.samples
    await side.until(lambda: samples._inbox.empty())
    for _ in range(20):
        await asyncio.sleep(0.01)
    return [decode(payload, Answer) for payload in device.answers[before:]]


def parts(device: FakeDevice, sealed: bytes = SEALED) -> list[SamplePart]:
    return [part(ID, sealed, index, head(device, sealed)) for index in range(-(-len(sealed) // PART_BYTES))]


def kinds(side: ControlSide, device: str = "pi-1") -> list[str]:
    return [event.kind for event in side.state.devices.events(device)]


async def test_parts_become_one_sample_which_is_acknowledged(side: ControlSide) -> None:
    """The first part is answered with the number of parts that are there; repetition stores nothing twice."""
    device = await side.device("pi-1")
    all_parts = parts(device)
    first, last = await send(side, device, *all_parts)
    assert (first.index, first.total, last.index, last.total) == (1, 3, 3, 3)
    (name,) = side.store.list("samples")
    stored = decode_stored(side.store.get(name))
    assert (stored.sealed, stored.model, stored.at) == (SEALED, "m", 5.0)
    found = parse_name(name)
    assert (found.device, found.id, found.size) == ("pi-1", ID, side.store.size(name))
    (again,) = await send(side, device, all_parts[0])
    assert again.index == 3
    await side.kill_controller()
    await side.start_controller()
    await asyncio.sleep(0.1)
    (again,) = await send(side, device, all_parts[0])
    assert again.index == 3
    assert len(side.store.list("samples")) == 1


async def test_a_device_goes_on_where_it_was_interrupted(side: ControlSide) -> None:
    """A lost part leaves a gap that the device fills; doubled parts change nothing."""
    device = await side.device("pi-1")
    one, two, three = parts(device)
    assert [a.index for a in await send(side, device, one, two, two, one)] == [1, 2]
    assert [a.index for a in await send(side, device, one, three)] == [2, 3]
    assert len(side.store.list("samples")) == 1
    lost = msgspec.structs.replace(three, id="4000000002" + "b" * 16)
    assert await send(side, device, lost) == []


async def test_hostile_parts_are_refused_and_told_once(side: ControlSide) -> None:
    """Each contradiction is an error; nothing is stored, and events are limited."""
    device, other = await side.device("pi-1"), await side.device("pi-2")
    one, two, three = parts(device)
    replace = msgspec.structs.replace
    for wrong in (
        [replace(one, index=-1)],
        [replace(one, total=0)],
        [replace(one, total=10**9)],
        [replace(one, id="../../metadata/root.json")],
        [replace(one, id="")],
        [replace(one, data=b"")],
        [replace(one, data=bytes(PART_BYTES + 1))],
        [replace(one, head=bytes(5000))],
        [replace(one, head=b"")],
        [replace(two, head=one.head)],
        [replace(one, head=head(device, size=10))],
        [replace(one, head=head(device, id="f" * 26))],
        [replace(one, head=head(device, fleet="other"))],
        [replace(one, head=head(device, device="pi-2"))],
        [one, replace(two, total=4)],
        [one, two, replace(one, data=bytes(PART_BYTES)), replace(two, data=bytes(PART_BYTES))],
        [one, two, replace(three, data=three.data[:-1] + b"!")],
        [replace(one, head=head(device, sha256="0" * 64)), two, three],
    ):
        answers = await send(side, device, *wrong)
        assert [a.index == 3 for a in answers].count(True) == 0, wrong
    await device.say("sample", b"\xc1 garbage")
    assert side.store.list("samples") == []
    assert set(kinds(side)) == {"bad-sample"}
    assert len(kinds(side)) == 1
    device.signer = other.signer
    assert await send(side, device, replace(one, head=head(device))) == []  # no answer to a stranger
    assert "bad-signature" in kinds(side)
    assert side.controller.values()["samples_refused_total"] >= 15


async def test_unknown_removed_and_quarantined_devices_store_nothing(side: ControlSide) -> None:
    """A name that is not enrolled, and one that is refused."""
    device = await side.device("pi-1")
    ghost = FakeDevice(side.broker, side.folder / "ghosts", "ghost")
    side.broker.publish(f"edgekit/v1/{FLEET}/device/ghost/sample", encode(part(ID, b"x", 0, head(ghost, b"x"))), qos=1)
    side.state.lifecycle.quarantine("pi-1", "stolen", 1.0)
    await side.until(lambda: "pi-1" in side.controller.refusals.refused)
    assert [a for a in await send(side, device, *parts(device)) if a.id == ID] == []
    assert side.store.list("samples") == []


async def test_a_device_has_a_quota_and_others_are_not_touched(side: ControlSide) -> None:
    """What finds no room is asked to wait; after samples are removed there is room again."""
    side.options = msgspec.structs.replace(side.options, sample_quota_bytes=len(SEALED) + 2000)
    await side.stop_controller()
    await side.start_controller()
    device, other = await side.device("pi-1"), await side.device("pi-2")
    await send(side, device, *parts(device))
    second = "4000000002" + "b" * 16
    (full,) = await send(side, device, part(second, SEALED, 0, head(device, id=second)))
    assert (full.error, full.id) == ("busy", second)
    assert full.retry_seconds > 600
    assert "samples-full" in kinds(side)
    assert [a.index for a in await send(side, other, *parts(other))] == [1, 3]
    name = side.store.list("samples/pi-1")[0]
    side.store.put(parse_name(name)._replace(size=0).text, b"")
    side.store.remove(name)
    side.controller.samples._indexes.clear()
    (first,) = await send(side, device, part(second, SEALED, 0, head(device, id=second)))
    assert (first.error, first.index) == ("", 1)
    (known,) = await send(side, device, parts(device)[0])
    assert known.index == 3  # collected and removed: it is not taken a second time


async def test_a_failing_store_loses_nothing(side: ControlSide) -> None:
    """The device is asked to wait, and its sample is stored later."""
    device = await side.device("pi-1")
    put = side.store.put

    def fails(name: str, data: object) -> None:
        raise StoreError("the disk is full")

    side.store.put = fails  # type: ignore[method-assign]
    answers = await send(side, device, *parts(device))
    assert [a.error for a in answers] == ["", "busy"]
    assert "samples-not-stored" in kinds(side)
    side.store.put = put  # type: ignore[method-assign]
    assert [a.index for a in await send(side, device, *parts(device))] == [1, 3]


async def test_samples_go_after_their_days(side: ControlSide) -> None:
    """By the day of arrival; foreign names in the folder stay."""
    now = side.clock.wall()
    old, new = (f"samples/pi-1/{day_of(now - days * 86_400)}/{ID}-1" for days in (92, 89))
    for name in (old, new, "samples/notes"):
        side.store.put(name, b"x")
    side.controller.samples._swept = float("-inf")
    await side.until(lambda: old not in side.store.list("samples"))
    assert side.store.list("samples") == sorted([new, "samples/notes"])
    assert side.controller.values()["samples_expired_total"] == 1


def test_the_largest_sample_and_one_byte_more() -> None:
    """Both sides of the limit."""
    largest = part(ID, bytes(MAX_SAMPLE_BYTES), 0, b"h")
    check_part(largest)
    with pytest.raises(DataError, match="parts"):
        check_part(part(ID, bytes(largest.total * PART_BYTES + 1), 0, b"h"))
    assert len(encode(msgspec.structs.replace(largest, head=bytes(2048)))) <= 64 * 1024


def test_many_devices_cannot_take_all_memory(tmp_path: Path) -> None:
    """The oldest sample that is not complete goes first."""
    from edgekit.controller import samples

    service = samples.SampleService.__new__(samples.SampleService)
    service._assemblies = {}
    largest = SampleHead("d", FLEET, ID, "m", "", 0.0, MAX_SAMPLE_BYTES, "")
    for n in range(30):
        service._make_room(f"d{n}", MAX_SAMPLE_BYTES, float(n))
        service._assemblies[f"d{n}"] = Assembly(largest, b"", part(ID, bytes(MAX_SAMPLE_BYTES), 0, b""), float(n))
    assert len(service._assemblies) == samples.MOST_ASSEMBLED_BYTES // MAX_SAMPLE_BYTES
    assert "d29" in service._assemblies
    service._make_room("new", 1, 1000.0)
    assert service._assemblies == {}

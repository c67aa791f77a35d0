"""The faults of the broker in memory happen as other tests need them."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.protocols import Message, Will
from tests.simulators.transport import MemoryBroker, MemoryTransport, connect, settle


async def run(broker: MemoryBroker, *, qos: int) -> list[int]:
    """Send 0 to 199 from one transport to another; what arrived, in order."""
    sender, receiver = MemoryTransport(broker, "sender"), MemoryTransport(broker, "receiver")
    await connect(sender, receiver)
    got: list[int] = []
    await receiver.subscribe("t", lambda m: got.append(int(m.payload)))
    for number in range(200):
        await sender.publish("t", b"%d" % number, qos=qos)
    await settle()
    await sender.stop()
    await receiver.stop()
    return got


async def test_a_faultless_broker_delivers_all_in_order() -> None:
    """By default no message is lost, repeated or overtaken."""
    for qos in (0, 1):
        assert await run(MemoryBroker(), qos=qos) == list(range(200))


async def test_drop_loses_messages_of_qos_0_only() -> None:
    """About the chosen share is lost at QoS 0, the same messages for the same seed; none is lost at QoS 1."""
    lossy = await run(MemoryBroker(drop=0.5, seed=1), qos=0)
    assert 50 < len(lossy) < 150
    assert lossy == sorted(set(lossy))
    assert lossy == await run(MemoryBroker(drop=0.5, seed=1), qos=0)
    assert lossy != await run(MemoryBroker(drop=0.5, seed=2), qos=0)
    assert await run(MemoryBroker(drop=0.5, seed=1), qos=1) == list(range(200))


async def test_duplicate_and_reorder_lose_nothing() -> None:
    """Every message arrives, some twice, some late."""
    twice = await run(MemoryBroker(duplicate=0.5), qos=1)
    assert sorted(set(twice)) == list(range(200))
    assert 250 < len(twice) < 350
    mixed = await run(MemoryBroker(reorder=0.5), qos=1)
    assert sorted(mixed) == list(range(200))
    assert mixed != list(range(200))


async def test_a_tap_replaces_what_is_delivered() -> None:
    """It sees each receiver's message, and may swallow, repeat or change it."""
    broker = MemoryBroker()

    def tap(client_id: str, message: Message) -> Iterable[Message]:
        assert client_id == "receiver"
        if message.payload == b"1":
            return []
        return [Message(message.topic, b"7")] * 2 if message.payload == b"2" else [message]

    broker.tap = tap
    assert (await run(broker, qos=1))[:4] == [0, 7, 7, 3]


async def test_a_client_that_is_held_away_stays_away() -> None:
    """`cut` with `hold` publishes the will and keeps the client out until `restore`."""
    broker = MemoryBroker()
    device = MemoryTransport(broker, "d", will=Will("p", b"offline"))
    await connect(device)
    broker.cut("d", hold=True)
    await settle()
    assert not device.connected
    assert broker.retained == {"p": b"offline"}
    broker.restore("d")
    await settle()
    assert device.connected

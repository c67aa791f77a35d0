"""Brokers whose largest packet is smaller than a block, or than three."""

import pytest

from device_agents.control.requests import RequestClient
from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.clock import SystemClock
from edgekit.controller.metadata import MetadataService
from edgekit.mqtt.limits import MIN_PACKET_BYTES, broadcast_blocks, packet_fault, part_bytes
from edgekit.mqtt.mosquitto import find_mosquitto
from edgekit.mqtt.transport import MqttTransport
from edgekit.registry import metadata_name, publish
from edgekit.rollout.values import RolloutState
from tests.edgekit.controller.test_identity import enrolled
from tests.simulators.control import ControlSide
from tests.simulators.mosquitto import free_port, running_mosquitto
from tests.simulators.small_models import onnx_bundle
from tests.simulators.store import MemoryStore

LIMIT, TOO_SMALL = 16 * 1024, 5_000
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.mark.parametrize(
    ("limit", "blocks", "part", "fault"),
    [
        (0, 3, BLOCK_BYTES, False),
        (327_680, 3, BLOCK_BYTES, False),
        (140_000, 2, BLOCK_BYTES, False),
        (131_072, 1, BLOCK_BYTES, False),
        (66_560, 1, BLOCK_BYTES, False),
        (66_559, 1, 65_535, False),
        (LIMIT, 1, 15_360, False),
        (MIN_PACKET_BYTES, 1, 4096, False),
        (TOO_SMALL, 1, BLOCK_BYTES, True),
    ],
)
def test_what_a_limit_allows(limit, blocks, part, fault):
    """Broadcasts get shorter; below one block come parts; below the least part there is an error with both numbers."""
    assert broadcast_blocks(limit) == blocks
    assert part_bytes(limit) == part
    assert bool(packet_fault(limit)) is fault
    assert not fault or (str(limit) in packet_fault(limit) and str(MIN_PACKET_BYTES) in packet_fault(limit))


def mosquitto_with(folder, port, limit):
    """A mosquitto whose largest packet has `limit` bytes."""
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size {limit}\n"
    return running_mosquitto(folder, config, port)


@needs_mosquitto
async def test_a_bundle_comes_in_parts_through_a_broker_below_one_block(tmp_path):
    """A real agent installs a bundle of several blocks over a real broker that accepts a quarter of a block."""
    port = free_port()
    with mosquitto_with(tmp_path, port, LIMIT):
        side = ControlSide(tmp_path, f"mqtt://127.0.0.1:{port}")
        async with side:
            manifest = onnx_bundle(tmp_path / "small", padding=200_000)
            assert max(len(file.blocks) for file in manifest.files) >= 4
            publish(side.store, side.repository, tmp_path / "small")
            agent = enrolled(side, side.url)
            await agent.start()
            try:
                side.start("small", "1.0.0", "x86-64")
                await side.until(lambda: side.rollout().state is not RolloutState.RUNNING)
                assert side.rollout().state is RolloutState.FINISHED, (side.rollout().reason, agent.log())
            finally:
                await agent.end()
            assert "packet-limit" not in {event.kind for event in side.state.devices.events("pi-1")}


@needs_mosquitto
async def test_a_bundle_comes_through_a_broker_that_drops_large_messages_without_a_word(tmp_path):
    """mosquitto's message_size_limit is not in its CONNACK: the agent asks for smaller parts when nothing arrives."""
    port = free_port()
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nmessage_size_limit 20000\n"
    with running_mosquitto(tmp_path, config, port):
        side = ControlSide(tmp_path, f"mqtt://127.0.0.1:{port}")
        async with side:
            onnx_bundle(tmp_path / "small", padding=200_000)
            publish(side.store, side.repository, tmp_path / "small")
            agent = enrolled(side, side.url)
            await agent.start()
            try:
                side.start("small", "1.0.0", "x86-64")
                await side.until(lambda: side.rollout().state is not RolloutState.RUNNING)
                assert side.rollout().state is RolloutState.FINISHED, (side.rollout().reason, agent.log())
            finally:
                await agent.end()


@needs_mosquitto
@pytest.mark.parametrize("limit", [20_000, 6_000])
async def test_metadata_comes_through_a_broker_that_drops_large_messages_without_a_word(tmp_path, limit):
    """A file of three times the limit comes in smaller parts after a silence or two."""
    port, store, data = free_port(), MemoryStore(), b"m" * 60_000
    store.put(metadata_name("7.snapshot.json"), data)
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nmessage_size_limit {limit}\n"
    with running_mosquitto(tmp_path, config, port):
        ends = [MqttTransport(f"mqtt://127.0.0.1:{port}", client_id=name) for name in ("controller", "d1")]
        service = MetadataService(fleet="f", transport=ends[0], store=store, clock=SystemClock())
        client = RequestClient(ends[1], fleet="f", device="d1", metadata_timeout_seconds=0.5)
        await service.start()
        await client.start()
        try:
            for end in ends:
                await end.start()
                await end.wait_connected(20)
            assert await client.metadata("7.snapshot.json") == data
        finally:
            await service.stop()
            for end in ends:
                await end.stop()


@needs_mosquitto
async def test_a_broker_below_the_least_part_ends_the_deployment_with_both_numbers(tmp_path, caplog):
    """Controller, agent and the device's outcome name the limit; nothing is repeated for ever."""
    port = free_port()
    with mosquitto_with(tmp_path, port, TOO_SMALL):
        side = ControlSide(tmp_path, f"mqtt://127.0.0.1:{port}")
        async with side:
            side.publish("small", "1.0.0", "x86-64", b"weights" * 20_000)
            agent = enrolled(side, side.url)
            await agent.start()
            try:
                await side.until(lambda: "packet-limit" in {e.kind for e in side.state.devices.events("pi-1")})
                side.start("small", "1.0.0", "x86-64")
                await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
            finally:
                await agent.end()
            reason = side.rollout().devices["pi-1"].reason
            assert "PacketTooLargeError" in reason
            assert f"accepts {TOO_SMALL}" in reason
    assert f"packets of up to {TOO_SMALL} bytes, and a part of a block needs {MIN_PACKET_BYTES}" in caplog.text
    assert f"packets of up to {TOO_SMALL}" in agent.log()

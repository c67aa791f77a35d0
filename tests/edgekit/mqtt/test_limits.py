"""Brokers whose largest packet is smaller than a block, or than three."""

import pytest

from edgekit.mqtt.limits import BLOCK_PACKET_BYTES, broadcast_blocks, packet_fault
from edgekit.mqtt.mosquitto import find_mosquitto
from edgekit.rollout.values import RolloutState
from tests.edgekit.controller.test_identity import enrolled
from tests.simulators.control import ControlSide
from tests.simulators.mosquitto import free_port, running_mosquitto

LIMIT = 40_000


@pytest.mark.parametrize(
    ("limit", "blocks", "fault"),
    [(0, 3, False), (327_680, 3, False), (131_072, 1, False), (140_000, 2, False), (LIMIT, 1, True)],
)
def test_what_a_limit_allows(limit, blocks, fault):
    """Broadcasts get shorter; below one block there is an error with both numbers."""
    assert broadcast_blocks(limit) == blocks
    assert bool(packet_fault(limit)) is fault
    assert not fault or (str(limit) in packet_fault(limit) and str(BLOCK_PACKET_BYTES) in packet_fault(limit))


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
async def test_a_broker_below_one_block_ends_the_deployment_with_both_numbers(tmp_path, caplog):
    """Controller, agent and the device's outcome name the limit; nothing is repeated for ever."""
    port = free_port()
    config = f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size {LIMIT}\n"
    with running_mosquitto(tmp_path, config, port):
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
            assert f"accepts {LIMIT}" in reason
    assert f"packets of up to {LIMIT} bytes, and a block needs {BLOCK_PACKET_BYTES}" in caplog.text
    assert f"packets of up to {LIMIT}" in agent.log()

"""The part size follows what arrives."""

from edgekit.bundle.manifest import BLOCK_BYTES
from edgekit.mqtt.limits import MIN_PART_BYTES
from edgekit.transfer.part_size import GROW_AFTER, PartSize


def transfer(limit: int, rounds: int) -> tuple[PartSize, list[int]]:
    """A transfer over a broker that drops messages of more than `limit` bytes: one message or a silence a round."""
    size, asked = PartSize(), []
    for _ in range(rounds):
        asked.append(size.bytes)
        if size.bytes <= limit:
            size.arrived(size.bytes)
        else:
            size.silent()
    return size, asked


def test_a_size_that_never_arrives_is_made_smaller_and_tried_again_once() -> None:
    """Below 20 kB: 64 and 16 KiB, then 64 KiB once more after some messages, and never again."""
    size, asked = transfer(20_000, 500)
    assert size.bytes == 16_384
    assert asked.count(BLOCK_BYTES) == 2
    assert asked[1] == 16_384


def test_the_least_part_stays() -> None:
    """Where nothing arrives at all, the size ends at the least part, in time for the last attempt."""
    size, asked = transfer(0, 5)
    assert (size.bytes, asked[2:]) == (MIN_PART_BYTES, [MIN_PART_BYTES] * 3)


def test_a_controller_that_was_away_does_not_make_parts_small_for_long() -> None:
    """After a silence, whole blocks come again within two sizes' trials."""
    size = PartSize()
    for _ in range(3):
        size.silent()
    for _ in range(2 * GROW_AFTER):
        size.arrived(size.bytes)
    assert size.bytes == BLOCK_BYTES


def test_one_silence_after_arrivals_changes_nothing() -> None:
    """A lost window is not a size that never arrives; the small end of a blob says nothing about the size."""
    size = PartSize()
    size.arrived(BLOCK_BYTES)
    size.silent()
    assert size.bytes == BLOCK_BYTES
    size.arrived(100)
    size.silent()
    assert size.bytes == BLOCK_BYTES // 4

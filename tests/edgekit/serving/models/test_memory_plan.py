"""Who may be in memory together: the longest unused goes, the pinned stay, and nobody is put out who has just come."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.serving.models.memory_plan import MIB, LoadedModel, MemoryBudgetError, MemoryPlan, estimate_bytes, plan
from edgekit.serving.session.memory_usage import pss_bytes, return_freed_memory, rss_bytes
from tests.simulators.alone import alone
from tests.simulators.small_models import onnx_bundle


def resident(name: str, size: int, *, used: float = 0.0, pinned: bool = False, loaded: float = -100.0) -> LoadedModel:
    return LoadedModel(name=name, bytes=size, pinned=pinned, used_at=used, loaded_at=loaded)


def test_nobody_goes_while_there_is_room() -> None:
    """Up to the last byte of the budget, and always where there is none."""
    assert plan("m", 40, [resident("a", 60)], budget=100, now=0.0) == MemoryPlan()
    assert plan("m", 10**12, [resident("a", 60)], budget=0, now=0.0) == MemoryPlan()


def test_the_longest_unused_goes_and_no_more_than_needed() -> None:
    """In the order of their last use, until it fits."""
    held = [resident("a", 30, used=3), resident("b", 30, used=1), resident("c", 30, used=2)]
    assert plan("m", 20, held, budget=100, now=9.0).evict == ("b",)
    assert plan("m", 50, held, budget=100, now=9.0).evict == ("b", "c")
    assert plan("m", 100, held, budget=100, now=9.0).evict == ("b", "c", "a")


def test_the_pinned_stay() -> None:
    """Others go in their place; what does not fit beside them is refused with the numbers."""
    held = [resident("a", 30 * MIB, used=1, pinned=True), resident("b", 30 * MIB, used=2)]
    assert plan("m", 60 * MIB, held, budget=100 * MIB, now=9.0).evict == ("b",)
    with pytest.raises(MemoryBudgetError, match=r"m needs 80\.0 MiB, the budget is 100\.0 MiB and 30\.0 MiB of it"):
        plan("m", 80 * MIB, held, budget=100 * MIB, now=9.0)


def test_who_has_just_come_stays_for_a_while() -> None:
    """Five seconds, or ten times what loading took; an update does not wait."""
    quick = LoadedModel(name="a", bytes=60, loaded_at=10.0, load_seconds=0.1)
    slow = LoadedModel(name="b", bytes=60, loaded_at=10.0, load_seconds=3.0)
    assert plan("m", 60, [quick], budget=100, now=14.9) == MemoryPlan(wait_until=15.0)
    assert plan("m", 60, [quick], budget=100, now=15.0) == MemoryPlan(evict=("a",))
    assert plan("m", 60, [slow], budget=100, now=15.0) == MemoryPlan(wait_until=40.0)
    assert plan("m", 60, [slow], budget=100, now=15.0, urgent=True) == MemoryPlan(evict=("b",))


def test_a_settled_model_goes_before_a_fresh_one_that_was_used_less() -> None:
    """Nobody waits while somebody may go."""
    fresh = LoadedModel(name="fresh", bytes=50, used_at=1.0, loaded_at=9.0)
    settled = LoadedModel(name="settled", bytes=50, used_at=8.0, loaded_at=0.0)
    assert plan("m", 50, [fresh, settled], budget=100, now=10.0) == MemoryPlan(evict=("settled",))
    assert plan("m", 100, [fresh, settled], budget=100, now=10.0) == MemoryPlan(wait_until=14.0)


manager = st.lists(
    st.builds(
        LoadedModel,
        name=st.uuids().map(str),
        bytes=st.integers(1, 60),
        pinned=st.booleans(),
        used_at=st.floats(0, 100),
        loaded_at=st.floats(0, 100),
        load_seconds=st.floats(0, 3),
    ),
    max_size=6,
)


@given(manager, st.integers(1, 120), st.floats(0, 150), st.booleans())
def test_a_plan_fits_or_names_the_time_when_it_will(
    held: list[LoadedModel], wanted: int, now: float, urgent: bool
) -> None:
    """Whatever is held: what stays and what comes are within the budget, and the pinned are among what stays."""
    try:
        found = plan("m", wanted, held, budget=100, now=now, urgent=urgent)
    except MemoryBudgetError:
        assert wanted + sum(one.bytes for one in held if one.pinned) > 100
        return
    if found.wait_until is not None:
        assert not urgent
        assert found.wait_until > now
        found = plan("m", wanted, held, budget=100, now=found.wait_until)
    gone = [one for one in held if one.name in found.evict]
    assert not any(one.pinned for one in gone)
    assert wanted + sum(one.bytes for one in held if one not in gone) <= max(100, 0) or not held


def test_before_the_first_load_the_artifact_says_what_is_needed(tmp_path) -> None:
    """Twice the file and some megabytes beside."""
    manifest = onnx_bundle(tmp_path)
    assert estimate_bytes(manifest) == 2 * manifest.file("model").size + 4 * MIB


def test_the_memory_of_a_process_can_be_read() -> None:
    """What is allocated shows, and what is freed is gone after it was given back."""
    alone(allocate_and_free)
    assert pss_bytes(os.getpid()) > 10 * MIB
    assert pss_bytes(2**30) == 0


def allocate_and_free() -> None:
    """In a process of its own: nothing else allocates or frees meanwhile."""
    before = rss_bytes()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    during = rss_bytes()
    del block
    return_freed_memory()
    assert during - before > 60 * MIB
    assert rss_bytes() - before < 30 * MIB

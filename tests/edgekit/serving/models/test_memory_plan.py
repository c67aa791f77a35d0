"""Memory plans: the longest unused model is unloaded first, pinned and just loaded models stay."""

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
    """A model fits up to the last byte of the budget, and always where there is no budget."""
    assert plan("m", 40, [resident("a", 60)], budget=100, now=0.0) == MemoryPlan()
    assert plan("m", 10**12, [resident("a", 60)], budget=0, now=0.0) == MemoryPlan()


def test_the_longest_unused_goes_and_no_more_than_needed() -> None:
    """Models are unloaded in the order of their last use, until the new one fits."""
    held = [resident("a", 30, used=3), resident("b", 30, used=1), resident("c", 30, used=2)]
    assert plan("m", 20, held, budget=100, now=9.0).evict == ("b",)
    assert plan("m", 50, held, budget=100, now=9.0).evict == ("b", "c")
    assert plan("m", 100, held, budget=100, now=9.0).evict == ("b", "c", "a")


def test_the_pinned_stay() -> None:
    """Others are unloaded instead; a model that does not fit beside the pinned ones is refused with the sizes."""
    held = [resident("a", 30 * MIB, used=1, pinned=True), resident("b", 30 * MIB, used=2)]
    assert plan("m", 60 * MIB, held, budget=100 * MIB, now=9.0).evict == ("b",)
    with pytest.raises(MemoryBudgetError, match=r"m needs 80\.0 MiB, the budget is 100\.0 MiB and 30\.0 MiB of it"):
        plan("m", 80 * MIB, held, budget=100 * MIB, now=9.0)


def test_who_has_just_come_stays_for_a_while() -> None:
    """A model stays for five seconds, or ten times its load time; an update does not wait for that."""
    quick = LoadedModel(name="a", bytes=60, loaded_at=10.0, load_seconds=0.1)
    slow = LoadedModel(name="b", bytes=60, loaded_at=10.0, load_seconds=3.0)
    assert plan("m", 60, [quick], budget=100, now=14.9) == MemoryPlan(wait_until=15.0)
    assert plan("m", 60, [quick], budget=100, now=15.0) == MemoryPlan(evict=("a",))
    assert plan("m", 60, [slow], budget=100, now=15.0) == MemoryPlan(wait_until=40.0)
    assert plan("m", 60, [slow], budget=100, now=15.0, urgent=True) == MemoryPlan(evict=("b",))


def test_a_settled_model_goes_before_a_fresh_one_that_was_used_less() -> None:
    """A model that may be unloaded now is unloaded, so that the new one need not wait for another."""
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
    """For all sizes, the remaining models and the new one fit the budget, and pinned models remain."""
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
    """The estimate is twice the file's size and some MiB."""
    manifest = onnx_bundle(tmp_path)
    assert estimate_bytes(manifest) == 2 * manifest.file("model").size + 4 * MIB


def test_the_memory_of_a_process_can_be_read() -> None:
    """Allocated memory is measured, and freed memory disappears after it was returned to the system."""
    alone(allocate_and_free)
    assert pss_bytes(os.getpid()) > 10 * MIB
    assert pss_bytes(2**30) == 0


def allocate_and_free() -> None:
    """Runs in a process of its own, where nothing else allocates or frees memory."""
    before = rss_bytes()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    during = rss_bytes()
    del block
    return_freed_memory()
    assert during - before > 60 * MIB
    assert rss_bytes() - before < 30 * MIB

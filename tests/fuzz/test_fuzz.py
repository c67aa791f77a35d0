"""Parsers of untrusted bytes refuse invalid input with their documented errors, with little memory and time.

`make fuzz` runs the same targets under libFuzzer.
"""

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, corpus

EVERY = pytest.mark.parametrize("name", TARGETS)
MEMORY_BYTES = 24 * 1024**2
BOMBS = (
    b"[" * 100_000,
    b"{" * 100_000,
    b'{"a":' * 30_000,
    b"\x91" * 200_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"9" * 100_000,
    b"1e" + b"9" * 50_000,
    b"a." * 30_000 + b"b = 1",
    b"a = " + b"[" * 20_000,
    b"\xff" * 200_000,
    b"\n" * 200_000,
)


@EVERY
def test_the_corpus_is_read_or_refused(name):
    """Each target accepts or refuses its stored inputs, and has at least one."""
    assert corpus(name)
    for data in corpus(name):
        TARGETS[name](data)


@EVERY
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_and_random_bytes_are_refused(name, data):
    """Seeds with changed, removed, repeated or inserted bytes, and random bytes, raise only documented errors."""
    seed = data.draw(st.sampled_from(corpus(name)))
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(changed)))
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            changed[at : at + 1] = data.draw(st.binary(max_size=4))
        elif kind == 1:
            changed[at:] = b""
        elif kind == 2:
            changed[at:at] = changed[max(0, at - data.draw(st.integers(0, 40))) : at]
        else:
            changed[at:at] = data.draw(
                st.sampled_from([b"null", b"-1", b"1e999", b'""', b"[]", b"{}", b"\xc0", b"\xff"])
            )
    TARGETS[name](bytes(changed))
    TARGETS[name](data.draw(st.binary(max_size=200)))


@EVERY
def test_what_is_meant_to_swell_or_to_nest_takes_little_memory(name):
    """Deeply nested and very long inputs, and inputs with false lengths, need less than MEMORY_BYTES."""
    run = TARGETS[name]
    run(corpus(name)[0])
    for bomb in (*BOMBS, random.Random(1).randbytes(100_000)):
        tracemalloc.start()
        try:
            run(bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_BYTES, f"{bomb[:20]!r}: {peak} bytes"

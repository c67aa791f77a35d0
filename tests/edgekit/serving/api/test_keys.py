"""API keys: the file, rotation, rates, quotas, and models."""

from __future__ import annotations

import pytest

from edgekit.errors import SettingsError
from edgekit.serving.api.keys import ForbiddenError, Keys, RateError, UnauthorizedError, digest_of, parse_keys

A, B, C = "key-of-the-north-1", "key-of-the-north-2", "key-of-the-south-1"
NOON = 20_000 * 86_400 + 43_200.0
FILE = f"""
[keys.north]
keys = ["{A}"]
sha256 = ["{digest_of(B)}"]
requests_per_second = 10
burst = 5
[keys.south]
keys = ["{C}"]
requests_per_day = 3
models = ["digits"]
expires = 2030-01-01
"""
FILE = FILE.replace("2030-01-01", "2030-01-01T00:00:00Z")


def test_a_bare_key_is_one_owner_without_limits() -> None:
    """As in earlier releases; a line feed at the end does not count."""
    keys = Keys(parse_keys(A + "\n"))
    digest = keys.find(A, NOON)
    for tick in range(1000):
        keys.charge(digest, "any", NOON, tick / 1e6)
    assert keys.name(A) == "default"
    for wrong in ("", B, A + "x", "é" * 20):
        with pytest.raises(UnauthorizedError, match="missing or wrong"):
            keys.find(wrong, NOON)


def test_an_owner_may_have_two_keys_while_they_are_rotated() -> None:
    """One as text, one by its digest; a key that left the file is refused, also where it was found before."""
    keys = Keys(parse_keys(FILE))
    old = keys.find(A, NOON)
    assert {keys.name(A), keys.name(B)} == {"north"}
    keys.replace(parse_keys(FILE.replace(f'keys = ["{A}"]\n', "")))
    keys.find(B, NOON)
    for again in (lambda: keys.find(A, NOON), lambda: keys.charge(old, "digits", NOON, 0.0)):
        with pytest.raises(UnauthorizedError):
            again()


def test_a_rate_holds_for_all_keys_of_an_owner() -> None:
    """A burst after a pause, then one request each tenth of a second; what is refused costs nothing."""
    keys = Keys(parse_keys(FILE))
    digests, retry = [keys.find(A, NOON), keys.find(B, NOON)], set()

    def let_in(ticks: list[float]) -> int:
        count = 0
        for number, tick in enumerate(ticks):
            try:
                keys.charge(digests[number % 2], "digits", NOON, tick)
                count += 1
            except RateError as error:
                retry.add(error.retry_after_seconds)
        return count

    assert let_in([0.0] * 20) == 5
    assert let_in([1.0 + n / 100 for n in range(100)]) == pytest.approx(5 + 10, abs=1)
    assert let_in([1000.0] * 20) == 5
    assert retry == {1.0}


def test_a_daily_quota_ends_at_midnight() -> None:
    """The error says when to come again, and reading the file anew does not give a second quota."""
    keys = Keys(parse_keys(FILE))
    digest = keys.find(C, NOON)
    for _ in range(3):
        keys.charge(digest, "digits", NOON, 0.0)
    keys.replace(parse_keys(FILE))
    with pytest.raises(RateError, match="key south has made its 3 requests of today") as caught:
        keys.charge(digest, "digits", NOON, 0.0)
    assert caught.value.retry_after_seconds == 43_200
    keys.charge(digest, "digits", NOON + 43_200, 0.0)
    assert keys.counts() == {("south", "requests"): 4, ("south", "quota"): 1}


def test_a_clock_that_is_set_back_over_midnight_gives_no_second_quota() -> None:
    """Each passing of midnight gave a whole quota; a clock that was days ahead does not lock a key out for days."""
    keys = Keys(parse_keys(FILE))
    digest = keys.find(C, NOON)
    midnight = NOON + 43_200
    for now in (midnight + 1, midnight - 1, midnight + 1):
        keys.charge(digest, "digits", now, 0.0)
    for now in (midnight - 1, midnight + 1):
        with pytest.raises(RateError, match="its 3 requests of today"):
            keys.charge(digest, "digits", now, 0.0)
    keys.charge(digest, "digits", midnight - 200_000, 0.0)


def test_models_and_expiry_limit_a_key() -> None:
    """Another model is refused and not counted as used; an expired key is as good as none."""
    keys = Keys(parse_keys(FILE))
    digest = keys.find(C, NOON)
    with pytest.raises(ForbiddenError, match="key south may not ask for model 'faces', only for digits"):
        keys.charge(digest, "faces", NOON, 0.0)
    with pytest.raises(UnauthorizedError, match="key of south has expired"):
        keys.find(C, 1_893_456_000.0)
    assert keys.counts() == {("south", "model"): 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("short", "at least 16"),
        ("two words of a key", "at least 16"),
        ("[keys]\n", "names no key"),
        ("[keys.a]\n", "keys.a has no key"),
        ('[keys.a]\nkeys = ["short"]\n', "a key of a must be one word"),
        (" \n", "it is empty"),
        ('[keys.a]\nsha256 = ["abc"]\n', "expected 64 hexadecimal"),
        (f'[keys.a]\nkeys = ["{A}"]\n[keys.b]\nkeys = ["{A}"]\n', "one key belongs to a and b"),
        (f'[keys.a]\nkeys = ["{A}"]\nrate = 3\n', "rate"),
        (f'[keys.a]\nkeys = ["{A}"]\nrequests_per_second = -1\n', "requests_per_second"),
        (f'[keys.a]\nkeys = ["{A}"]\nrequests_per_second = nan\n', "requests_per_second"),
        (f"{A}\n{B}\n", "neither one key nor a table"),
    ],
)
def test_a_faulty_file_is_refused_whole(text: str, says: str) -> None:
    """The error says what is wrong, and never shows a key."""
    with pytest.raises(SettingsError, match=says) as caught:
        parse_keys(text)
    assert A not in str(caught.value)

"""API keys of clients: who sends a key, what the key may ask for, and how often. Rules only."""

from __future__ import annotations

import datetime
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edgekit.bundle.manifest import SHA256
from edgekit.errors import EdgekitError, SettingsError
from edgekit.serving.session.queue import MIN_RETRY_SECONDS, OverloadedError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_KEY_LENGTH = 16
ONE_KEY = "default"  # the name of the owner of a bare key
_DAY_SECONDS = 86_400

Rate = Annotated[float, Meta(ge=0, le=1e6)]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class UnauthorizedError(EdgekitError):
    """A request without a key, or with one that is unknown or has expired."""


class ForbiddenError(EdgekitError):
    """A request for a model that its key may not ask for."""


class RateError(OverloadedError):
    """A key's rate or its daily quota is used up."""


class KeyOwner(Struct, frozen=True, kw_only=True):
    """One device, team or site, and what its keys may do.

    Attributes:
        name: Its name, for the log and the metrics.
        digests: sha256 of its keys in hex; several while keys are rotated.
        requests_per_second: Highest mean rate of inference requests; 0 for no limit.
        burst: Requests that may come at once after a pause; 0 for twice the rate.
        requests_per_day: Inference requests of one day (UTC); 0 for no limit.
        models: Models that it may ask for; empty for all.
        expires: Wall clock seconds after which its keys are refused; None for never.
    """

    name: str
    digests: tuple[str, ...]
    requests_per_second: float = 0.0
    burst: int = 0
    requests_per_day: int = 0
    models: tuple[str, ...] = ()
    expires: float | None = None


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keys.NAME]`` of a key file."""

    keys: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    requests_per_second: Rate = 0.0
    burst: Number = 0
    requests_per_day: Number = 0
    models: tuple[str, ...] = ()
    expires: datetime.datetime | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[Annotated[str, Meta(min_length=1, max_length=64)], _Table]


def digest_of(key: str) -> str:
    """The sha256 of a key in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def one_key(key: str) -> tuple[KeyOwner, ...]:
    """The owners where everyone has the same key."""
    return (KeyOwner(name=ONE_KEY, digests=(digest_of(key),)),)


def parse_keys(text: str) -> tuple[KeyOwner, ...]:
    """The owners that a key file names: one bare key, or TOML with a table ``[keys.NAME]`` for each owner.

    Raises:
        SettingsError: the text is neither, a key is too short, or a key has two owners.
    """
    if not text.strip():
        raise SettingsError("it is empty", advice="`edgekit cloud key OWNER` makes a key and the lines for this file.")
    if "\n" not in text.strip() and "[" not in text:
        _check_key(text.strip(), "the key")
        return one_key(text.strip())
    try:
        tables = msgspec.convert(tomllib.loads(text), _File).keys
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(
            f"it is neither one key nor a table of keys: {error}",
            advice="Write one key, or for each owner: [keys.NAME] with sha256 = [...] or keys = [...].",
        ) from error
    owners = tuple(_owner(name, table) for name, table in tables.items())
    digests = Counter(digest for owner in owners for digest in owner.digests)
    if not owners or digests.most_common(1)[0][1] > 1:
        twice = [owner.name for owner in owners if any(digests[one] > 1 for one in owner.digests)]
        raise SettingsError(f"one key belongs to {' and '.join(twice)}" if twice else "it names no key")
    return owners


def _owner(name: str, table: _Table) -> KeyOwner:
    for key in table.keys:
        _check_key(key, f"a key of {name}")
    if wrong := [one for one in table.sha256 if not SHA256.fullmatch(one)]:
        raise SettingsError(f"sha256 of {name} is {wrong[0][:80]!r}, expected 64 hexadecimal digits in lower case")
    if not (table.keys or table.sha256):
        raise SettingsError(f"keys.{name} has no key", advice="Set sha256 = [...] or keys = [...].")
    expires = table.expires
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=datetime.timezone.utc)
    return KeyOwner(
        name=name,
        digests=(*map(digest_of, table.keys), *table.sha256),
        requests_per_second=table.requests_per_second,
        burst=table.burst,
        requests_per_day=table.requests_per_day,
        models=table.models,
        expires=None if expires is None else expires.timestamp(),
    )


def _check_key(key: str, what: str) -> None:
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
        raise SettingsError(f"{what} must be one word of at least {MIN_KEY_LENGTH} characters")


class Keys:
    """The keys that are let in now. Use counts of an owner outlive `replace`; they are those of this process.

    Args:
        owners: From `parse_keys` or `one_key`.
    """

    def __init__(self, owners: Iterable[KeyOwner]) -> None:
        self._by_digest: dict[str, KeyOwner] = {}
        self._tokens: dict[str, tuple[float, float]] = {}  # by owner: tokens, and when they were counted
        self._today: dict[str, tuple[int, int]] = {}  # by owner: day, and requests in it
        self._counts: Counter[tuple[str, str]] = Counter()  # by owner and outcome
        self.replace(owners)

    def replace(self, owners: Iterable[KeyOwner]) -> None:
        """Let these keys in from now on, and no others."""
        self._by_digest = {digest: owner for owner in owners for digest in owner.digests}

    def find(self, key: str, now: float) -> str:
        """The digest of a key that is let in. Timing tells nothing of a key, because its digest is looked up.

        Args:
            key: As the client sent it; empty for none.
            now: Wall clock seconds.

        Raises:
            UnauthorizedError: there is no such key, or it has expired.
        """
        digest = digest_of(key)
        self._owner(digest, now)
        return digest

    def name(self, key: str) -> str:
        """The name of a key's owner; empty for an unknown key."""
        owner = self._by_digest.get(digest_of(key))
        return owner.name if owner is not None else ""

    def check_model(self, digest: str, model: str, now: float) -> None:
        """Check that a key may ask for a model; nothing is counted as used. Arguments and errors as in `charge`."""
        self._permitted(digest, model, now)

    def charge(self, digest: str, model: str, now: float, tick: float) -> None:
        """Let an inference request in, and count it.

        Args:
            digest: Digest of its key.
            model: Name of the model.
            now: Wall clock seconds.
            tick: Monotonic seconds.

        Raises:
            UnauthorizedError: the key is not let in any more.
            ForbiddenError: its owner may not ask for the model.
            RateError: its owner's rate or daily quota is used up.
        """
        owner = self._permitted(digest, model, now)
        name = owner.name
        day, used = self._today.get(name, (0, 0))
        today = int(now // _DAY_SECONDS)
        if today > day or today < day - 1:  # a clock that is set back over midnight, and passes it again, begins no day
            day, used = today, 0
        if owner.requests_per_day and used >= owner.requests_per_day:
            self._counts[name, "quota"] += 1
            left = (day + 1) * _DAY_SECONDS - now
            raise RateError(
                model,
                0,
                max(left, MIN_RETRY_SECONDS),
                f"key {name} has made its {owner.requests_per_day} requests of today",
                "raise requests_per_day",
            )
        if owner.requests_per_second:
            self._take_token(owner, model, tick)
        self._today[name] = (day, used + 1)
        self._counts[name, "requests"] += 1

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Requests by owner and outcome: ``requests`` (let in), or ``rate``, ``quota`` or ``model`` (why not)."""
        return dict(self._counts)

    def _owner(self, digest: str, now: float) -> KeyOwner:
        owner = self._by_digest.get(digest)
        if owner is None:
            raise UnauthorizedError("the API key is missing or wrong; send Authorization: Bearer <key>")
        if owner.expires is not None and now >= owner.expires:
            raise UnauthorizedError(f"the API key of {owner.name} has expired")
        return owner

    def _permitted(self, digest: str, model: str, now: float) -> KeyOwner:
        """The owner of a key that may ask for a model."""
        owner = self._owner(digest, now)
        if owner.models and model not in owner.models:
            self._counts[owner.name, "model"] += 1
            message = f"key {owner.name} may not ask for model {model!r}, only for {', '.join(owner.models)}"
            raise ForbiddenError(message)
        return owner

    def _take_token(self, owner: KeyOwner, model: str, tick: float) -> None:
        """A token bucket: full after a pause, one token a request."""
        rate = owner.requests_per_second
        size = float(owner.burst or max(1, math.ceil(2 * rate)))
        tokens, at = self._tokens.get(owner.name, (size, tick))
        tokens = min(size, tokens + max(tick - at, 0.0) * rate)
        if tokens < 1:
            self._tokens[owner.name] = (tokens, tick)
            self._counts[owner.name, "rate"] += 1
            raise RateError(
                model,
                0,
                max((1 - tokens) / rate, MIN_RETRY_SECONDS),
                f"key {owner.name} sends more than {rate:g} requests a second",
                "raise requests_per_second",
            )
        self._tokens[owner.name] = (tokens - 1, tick)

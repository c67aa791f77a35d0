"""Arguments of remote commands: what both sides accept and refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgekit.errors import DataError
from edgekit.mqtt.command_arguments import (
    ARGUMENTS,
    LogsArguments,
    NoArguments,
    ProfileArguments,
    SetArguments,
    parse_arguments,
)
from edgekit.mqtt.remote_settings import SETTABLE
from edgekit.settings import AgentSettings

BUNDLE = {"model": "m", "version": "1.0.0", "target": "t", "digest": "0" * 64}


@pytest.mark.parametrize(
    ("kind", "args", "found"),
    [
        ("self-test", {}, NoArguments()),
        ("restart", {}, NoArguments()),
        ("logs", {}, LogsArguments(100)),
        ("logs", {"lines": 3}, LogsArguments(3)),
        ("set", {"values": {"threads": "2"}}, SetArguments({"threads": "2"})),
        ("profile", {**BUNDLE, "seconds": 2}, ProfileArguments(**BUNDLE, seconds=2.0)),
    ],
)
def test_good_arguments(kind: str, args: dict[str, Any], found: msgspec.Struct) -> None:
    """What is left out has a default."""
    assert parse_arguments(kind, args) == found


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("self-test", {"models": "all"}),
        ("logs", {"lines": 0}),
        ("logs", {"lines": 1e9}),
        ("logs", {"file": "/etc/shadow"}),
        ("set", {}),
        ("set", {"values": {}}),
        ("set", {"values": {"threads": "9" * 201}}),
        ("profile", {**BUNDLE, "digest": "../x"}),
        ("profile", {**BUNDLE, "seconds": float("nan")}),
        ("profile", {**BUNDLE, "memory_mib": 1}),
        ("profile", {}),
    ],
)
def test_other_arguments_are_refused(kind: str, args: dict[str, Any]) -> None:
    """Unknown keys, wrong types and values out of range."""
    with pytest.raises(DataError, match=kind):
        parse_arguments(kind, args)


@pytest.mark.parametrize("name", [name for name in AgentSettings.__struct_fields__ if name not in SETTABLE])
def test_every_other_setting_is_refused(name: str) -> None:
    """Trust, keys, addresses, tags, the cloud tier and what is sent to it."""
    with pytest.raises(DataError, match="cannot be set remotely"):
        parse_arguments("set", {"values": {name: "1"}})


def test_no_settable_key_concerns_trust_or_privacy() -> None:
    """Whoever adds a key thinks again: these words never are part of one."""
    words = ("key", "root", "cloud", "broker", "send", "fallback", "http", "grpc", "socket", "state", "isolation")
    assert [name for name in SETTABLE for word in words if word in name] == []
    assert set(SETTABLE) <= set(AgentSettings.__struct_fields__)
    assert "set" in ARGUMENTS


def number_keys() -> list[str]:
    return [key for key, allowed in SETTABLE.items() if allowed.kind in (int, float)]


@pytest.mark.parametrize("key", SETTABLE)
def test_settings_take_whatever_a_command_may_give_them(key: str) -> None:
    """The types and ranges of both sides agree: no accepted value is one that the agent cannot start with."""
    kind = next(one.type for one in msgspec.structs.fields(AgentSettings) if one.name == key)
    allowed = SETTABLE[key]
    texts = {bool: ["true", "false"], str: ["08:00-09:00"]}.get(allowed.kind, [])
    texts = texts or [f"{int(n) if n == int(n) else n}" for n in (allowed.low, allowed.high)]
    for text in texts + (["0"] if allowed.zero else []):
        parse_arguments("set", {"values": {key: text}})
        msgspec.convert(text, kind, strict=False)


@pytest.mark.parametrize("key", number_keys())
@pytest.mark.parametrize("text", ["1e999", "nan", "-1", "9" * 40, "1e18", str(2**53)])
def test_no_number_can_be_set_to_an_absurd_value(key: str, text: str) -> None:
    """A whole fleet that reports once in thirty years, or refuses every bundle, is one typing error away."""
    with pytest.raises(DataError, match=key):
        parse_arguments("set", {"values": {key: text}})


def test_the_error_has_the_range_and_its_reason() -> None:
    """All faults at once; 0 is no limit only where it is one."""
    values = {"heartbeat_seconds": "1e9", "max_bundle_bytes": "0", "quiet_hours": "soon", "memory_budget_mib": "1"}
    with pytest.raises(DataError) as caught:
        parse_arguments("set", {"values": values})
    for words in (
        "heartbeat_seconds is 1e+09, expected 1 to 86400 (more often",
        "max_bundle_bytes is 0, expected 4096 to 1099511627776 (below",
        "quiet hours are 'soon'",
        "memory_budget_mib is 1, expected 16 to 1048576, or 0 for no limit (below it, no model fits)",
    ):
        assert words in str(caught.value)
    assert parse_arguments("set", {"values": {"memory_budget_mib": "0", "heartbeat_seconds": ""}})

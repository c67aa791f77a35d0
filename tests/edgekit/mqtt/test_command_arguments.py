"""Arguments of remote commands: what both sides accept and refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgekit.errors import DataError
from edgekit.mqtt.command_arguments import (
    ARGUMENTS,
    SETTABLE,
    LogsArguments,
    NoArguments,
    ProfileArguments,
    SetArguments,
    parse_arguments,
)
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

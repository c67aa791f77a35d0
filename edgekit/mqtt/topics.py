"""The MQTT topic schema. No other file builds or parses topics."""

from __future__ import annotations

import re
from typing import NamedTuple

ROOT = "edgekit/v1"
DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEVICE_KINDS = ("desired", "reported", "presence", "telemetry", "event", "command", "result", "sample")
REQUEST_KINDS = ("metadata", "blocks", "certificate")
CONTROLLER = "controller"  # the broker user that may read and write everything; no device may have this name


class DeviceTopic(NamedTuple):
    """A topic below ``device/<id>/``."""

    fleet: str
    device: str
    kind: str


class RequestTopic(NamedTuple):
    """A topic below ``request/``."""

    fleet: str
    kind: str
    device: str


class ClaimTopic(NamedTuple):
    """A topic below ``claim/``: the id of an enrollment code."""

    fleet: str
    token: str


def check_name(name: str) -> str:
    """Return `name` if a fleet or a device may have it.

    Raises:
        ValueError: the name is not allowed.
    """
    if not DEVICE_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a device or fleet name; use at most 63 lower-case letters, digits and dashes"
        )
    return name


def check_device_name(name: str) -> str:
    """Return `name` if a device may have it.

    Raises:
        ValueError: the name is not allowed.
    """
    if check_name(name) == CONTROLLER:
        raise ValueError(
            f"a device cannot be called {name!r}, because brokers let that user read and write everything; "
            "choose another name"
        )
    return name


def device(fleet: str, device_id: str, kind: str) -> str:
    """``edgekit/v1/<fleet>/device/<id>/<kind>``; `device_id` ``+`` makes a filter over all devices."""
    if kind not in DEVICE_KINDS:
        raise ValueError(f"unknown device topic {kind!r}")
    return f"{_fleet(fleet)}/device/{_level(device_id)}/{kind}"


def request(fleet: str, kind: str, device_id: str) -> str:
    """``edgekit/v1/<fleet>/request/<kind>/<id>``; `device_id` ``+`` makes a filter."""
    if kind not in REQUEST_KINDS:
        raise ValueError(f"unknown request kind {kind!r}")
    return f"{_fleet(fleet)}/request/{kind}/{_level(device_id)}"


def answer(fleet: str, device_id: str) -> str:
    """``edgekit/v1/<fleet>/answer/<id>``."""
    return f"{_fleet(fleet)}/answer/{_level(device_id)}"


def broadcast(fleet: str, digest: str) -> str:
    """``edgekit/v1/<fleet>/wave/<digest>``: broadcast blocks of a blob."""
    return f"{_fleet(fleet)}/wave/{digest}"


def broadcast_claim(fleet: str, digest: str) -> str:
    """``edgekit/v1/<fleet>/wave/<digest>/claim``; `digest` ``+`` makes a filter over all blobs."""
    return f"{_fleet(fleet)}/wave/{digest}/claim"


def claim(fleet: str, token: str) -> str:
    """``edgekit/v1/<fleet>/claim/<token id>``; `token` ``+`` makes a filter."""
    return f"{_fleet(fleet)}/claim/{_level(token)}"


def claim_answer(fleet: str, token: str) -> str:
    """``edgekit/v1/<fleet>/claim/<token id>/answer``."""
    return f"{claim(fleet, token)}/answer"


def fleet_hints(fleet: str) -> str:
    """``edgekit/v1/<fleet>/fleet``."""
    return f"{_fleet(fleet)}/fleet"


def parse_device(topic: str) -> DeviceTopic | None:
    """The parts of a device topic, or None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != ROOT or parts[3] != "device" or parts[5] not in DEVICE_KINDS:
        return None
    if not DEVICE_NAME.fullmatch(parts[2]) or not DEVICE_NAME.fullmatch(parts[4]):
        return None
    return DeviceTopic(parts[2], parts[4], parts[5])


def parse_request(topic: str) -> RequestTopic | None:
    """The parts of a request topic, or None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != ROOT or parts[3] != "request" or parts[4] not in REQUEST_KINDS:
        return None
    if not DEVICE_NAME.fullmatch(parts[2]) or not DEVICE_NAME.fullmatch(parts[5]):
        return None
    return RequestTopic(parts[2], parts[4], parts[5])


def parse_claim(topic: str) -> ClaimTopic | None:
    """The parts of a claim topic, or None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 5 or "/".join(parts[:2]) != ROOT or parts[3] != "claim":
        return None
    if not DEVICE_NAME.fullmatch(parts[2]) or not DEVICE_NAME.fullmatch(parts[4]):
        return None
    return ClaimTopic(parts[2], parts[4])


def _fleet(fleet: str) -> str:
    return f"{ROOT}/{check_name(fleet)}"


def _level(device_id: str) -> str:
    return device_id if device_id == "+" else check_name(device_id)

"""The MQTT topic schema: built and parsed here and nowhere else."""

from __future__ import annotations

import re
from typing import NamedTuple

ROOT = "edgekit/v1"
DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEVICE_KINDS = ("desired", "reported", "presence", "telemetry", "event", "command", "result")
REQUEST_KINDS = ("metadata", "blocks")
CONTROLLER = "controller"  # the broker user that may read and write everything; so no device may be called so


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


def check_name(name: str) -> str:
    """Return `name` when it may stand in a topic as a fleet or device.

    Raises:
        ValueError: it may not.
    """
    if not DEVICE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a device or fleet name: lower case letters, digits and dashes, at most 63")
    return name


def check_device_name(name: str) -> str:
    """Return `name` when a device may have it.

    Raises:
        ValueError: it may not.
    """
    if check_name(name) == CONTROLLER:
        raise ValueError(f"{name!r} cannot be a device: brokers let the user of that name read and write everything")
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


def wave(fleet: str, digest: str) -> str:
    """``edgekit/v1/<fleet>/wave/<digest>``."""
    return f"{_fleet(fleet)}/wave/{digest}"


def wave_claim(fleet: str, digest: str) -> str:
    """``edgekit/v1/<fleet>/wave/<digest>/claim``; `digest` ``+`` makes a filter over all blobs."""
    return f"{_fleet(fleet)}/wave/{digest}/claim"


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


def _fleet(fleet: str) -> str:
    return f"{ROOT}/{check_name(fleet)}"


def _level(device_id: str) -> str:
    return device_id if device_id == "+" else check_name(device_id)

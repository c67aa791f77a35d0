"""Devices, cohorts and the order in which a rollout reaches them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec


class Device(msgspec.Struct, frozen=True):
    """An enrolled device.

    Attributes:
        name: Its id in topics.
        target: Its target profile's name; decides which bundle of a model it gets.
        public_key: PEM of the key that signs its reports.
        labels: What an operator wants to select by, for example ``{"site": "north"}``.
        enrolled: Wall clock seconds.
    """

    name: str
    target: str
    public_key: str
    labels: dict[str, str] = {}
    enrolled: float = 0.0


class Cohort(msgspec.Struct, frozen=True):
    """Which devices a rollout is for; an empty field selects all.

    Attributes:
        targets: Target profile names, any of which a device may have.
        labels: Labels, all of which a device must have.
    """

    targets: tuple[str, ...] = ()
    labels: dict[str, str] = {}

    def selects(self, device: Device) -> bool:
        """True when `device` belongs to this cohort."""
        if self.targets and device.target not in self.targets:
            return False
        return all(device.labels.get(key) == value for key, value in self.labels.items())


def wave_order(rollout: int, devices: Iterable[str]) -> list[str]:
    """Names in the order in which waves reach them: the same on every controller, different for every rollout.

    So no device is always the first to try what is new, and no stored list decides who comes next.
    """
    return sorted(devices, key=lambda name: (_position(rollout, name), name))


def _position(rollout: int, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()

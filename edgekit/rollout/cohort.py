"""Devices, cohorts and the order in which a rollout reaches them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import msgspec


class Device(msgspec.Struct, frozen=True):
    """An enrolled device.

    Attributes:
        name: The device's id in topics.
        target: Name of its target profile, which decides which bundle of a model it gets.
        public_key: PEM of the key that signs its reports.
        labels: Labels for selecting devices, for example ``{"site": "north"}``.
        enrolled: Time of enrollment, wall clock seconds.
    """

    name: str
    target: str
    public_key: str
    labels: dict[str, str] = {}
    enrolled: float = 0.0


class Selectable(Protocol):
    """What decides whether a cohort selects a device."""

    @property
    def target(self) -> str:
        """Name of its target profile."""

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""


class Cohort(msgspec.Struct, frozen=True):
    """The devices that a rollout selects; an empty field selects all.

    Attributes:
        targets: Names of target profiles; a device must have one of them.
        labels: Labels; a device must have all of them.
    """

    targets: tuple[str, ...] = ()
    labels: dict[str, str] = {}

    def selects(self, device: Selectable) -> bool:
        """True when `device` belongs to this cohort."""
        if self.targets and device.target not in self.targets:
            return False
        return all(device.labels.get(key) == value for key, value in self.labels.items())


def wave_order(rollout: int, devices: Iterable[str]) -> list[str]:
    """Device names in the order in which waves reach them.

    The order is the same on every controller and differs for every rollout. So no device is always the first to try a
    new version, and no list must be stored.
    """
    return sorted(devices, key=lambda name: (_position(rollout, name), name))


def _position(rollout: int, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()

"""Devices, cohorts and the order in which a rollout reaches them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from edgekit.errors import SettingsError

MAX_LABEL_KEY, MAX_LABEL_VALUE = 63, 255  # characters; what is longer could not be selected by


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


def check_labels(labels: Mapping[str, str | None]) -> None:
    """Check labels that are set; None stands for one that is removed, which may have any name.

    Raises:
        SettingsError: a key or a value is too long or has characters that cannot be printed, or a key is empty or has
            blanks.
    """
    for key, value in labels.items():
        if value is None:
            continue
        if not 0 < len(key) <= MAX_LABEL_KEY or not key.isprintable() or " " in key:
            raise SettingsError(
                f"the label key {key[:80]!r} is not valid, expected 1 to {MAX_LABEL_KEY} characters without blanks"
            )
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():
            raise SettingsError(
                f"the value of label {key} has {len(value)} characters, expected at most {MAX_LABEL_VALUE} that can be "
                "printed"
            )


class Cohort(msgspec.Struct, frozen=True):
    """The devices that a rollout selects; an empty field selects all.

    Attributes:
        targets: Names of target profiles; a device must have one of them.
        labels: Labels; a device must have all of them.
        filter: A filter, as people write it; a device must match it when it is surveyed first.
        groups: The saved groups that the filter names, as they were when the cohort was made.
    """

    targets: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    filter: str = ""
    groups: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The selection as people write it; empty for all devices."""
        parts = [f"--target {target}" for target in self.targets]
        parts += [f"--label {key}={value}" for key, value in self.labels.items()]
        return " ".join([*parts, f"--filter '{self.filter}'"] if self.filter else parts)


def wave_order(rollout: int, devices: Iterable[str]) -> list[str]:
    """Device names in the order in which waves reach them.

    The order is the same on every controller and differs for every rollout. So no device is always the first to try a
    new version, and no list must be stored.
    """
    return sorted(devices, key=lambda name: (_position(rollout, name), name))


def _position(rollout: int, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()

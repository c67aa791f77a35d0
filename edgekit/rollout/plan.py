"""Plan: how a rollout proceeds, as data that is checked before it starts."""

from __future__ import annotations

import itertools
import math

import msgspec

from edgekit.errors import SettingsError


class Wave(msgspec.Struct, frozen=True):
    """How many devices may have been told when this wave has begun: a share of all, or a count where `count` is set."""

    share: float = 0.0
    count: int = 0

    def limit(self, devices: int) -> int:
        """Devices that may have been told, of `devices` in all; at least one, so that a small fleet starts too."""
        return min(devices, max(1, self.count or math.ceil(self.share * devices - 1e-9)))

    @property
    def text(self) -> str:
        """As people write it: ``10%`` or ``5``."""
        return str(self.count) if self.count else f"{self.share * 100:g}%"


DEFAULT_WAVES = (Wave(share=0.1), Wave(share=0.5), Wave(share=1.0))


class Plan(msgspec.Struct, frozen=True):
    """How a rollout proceeds.

    Attributes:
        waves: Rising; the last one is everybody.
        success_threshold: Share of a wave's devices, and at least one, that must have succeeded before the next wave.
        error_threshold: The rollout pauses when more than this share of the told devices failed ...
        min_failures: ... and at least so many did.
        device_deadline_seconds: A told device that has neither succeeded nor failed after this long has failed.
    """

    waves: tuple[Wave, ...] = DEFAULT_WAVES
    success_threshold: float = 0.9
    error_threshold: float = 0.1
    min_failures: int = 1
    device_deadline_seconds: float = 600.0

    def __post_init__(self) -> None:
        faults = []
        if not self.waves or self.waves[-1].count or self.waves[-1].share != 1.0:
            faults.append("the last wave must be 100%")
        for wave in self.waves:
            if wave.count < 0 or not (wave.count or 0 < wave.share <= 1):
                faults.append(f"wave {wave.text} is neither a share above 0% up to 100% nor a count")
        for unit in ("share", "count"):
            sizes = [getattr(wave, unit) for wave in self.waves if bool(wave.count) == (unit == "count")]
            if any(later <= sooner for sooner, later in itertools.pairwise(sizes)):
                faults.append("waves must rise")
        for name in ("success_threshold", "error_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if self.min_failures < 1:
            faults.append(f"min_failures is {self.min_failures}, expected at least 1")
        if not self.device_deadline_seconds > 0:
            faults.append(f"device_deadline_seconds is {self.device_deadline_seconds}, expected more than 0")
        if faults:
            raise SettingsError("the plan is not valid: " + "; ".join(faults))


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Waves as people write them: ``10%,50%,100%`` or ``1,5,100%``.

    Raises:
        SettingsError: a part is neither a share nor a count.
    """
    waves = []
    for part in (part.strip() for part in text.split(",")):
        try:
            waves.append(Wave(share=float(part[:-1]) / 100) if part.endswith("%") else Wave(count=int(part)))
        except ValueError:
            raise SettingsError(
                f"wave {part!r} is neither a share such as 10% nor a count such as 5",
                advice="Write waves as in --waves 10%,50%,100%.",
            ) from None
    return tuple(waves)

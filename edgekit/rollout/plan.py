"""The plan of a rollout: waves and thresholds, checked when the plan is made."""

from __future__ import annotations

import itertools
import math
import re

import msgspec

from edgekit.bounds import MAX_INTEGER, MAX_SECONDS, number_fault
from edgekit.errors import SettingsError
from edgekit.hours import parse_hours
from edgekit.rollout.allowance import MAX_PER_HOUR, MAX_RAMP, MIN_PER_HOUR
from edgekit.rollout.cohort import Cohort
from edgekit.rollout.gates import AGREEMENT, MAX_GATES, Gate


class Wave(msgspec.Struct, frozen=True):
    """How many devices may have the assignment in this wave, counted from the start.

    Attributes:
        share: Share of all devices, above 0 and up to 1; used where `count` is 0.
        count: Number of devices; 0 for none.
        cohort: The devices that the wave adds; `count` is then set when the rollout is planned. None for any.
    """

    share: float = 0.0
    count: int = 0
    cohort: Cohort | None = None

    def limit(self, devices: int) -> int:
        """Number of devices that may have the assignment, of `devices`; at least one, so that a small fleet starts."""
        return min(devices, max(1, self.count or math.ceil(self.share * devices - 1e-9)))

    @property
    def text(self) -> str:
        """As people write it: ``10%``, ``5`` or ``label.ring == 0``."""
        if self.cohort is not None:
            return self.cohort.filter
        return str(self.count) if self.count else f"{self.share * 100:g}%"


# A comma between waves, or what may hold a comma that belongs to a filter: brackets and quotes.
_COMMA = re.compile(r"""\([^)]*\)|'[^']*'|"[^"]*"|(,)""")
_FILTER = re.compile(r"[=!<>(]|\bin\b|^(?:online|offline|waiting)$")
PAUSE, RETURN = "pause", "return"
AT_START, BEFORE_WAVES = "start", "waves"
PREVIOUS, COHORT = "previous", "cohort"
MAX_SHADOW = 1_000_000  # inputs of one device
DEFAULT_WAVES = (Wave(share=0.1), Wave(share=0.5), Wave(share=1.0))


class RolloutPlan(msgspec.Struct, frozen=True):
    """Waves and thresholds of a rollout.

    Attributes:
        waves: Rising sizes; the last one is 100%.
        success_threshold: The next wave starts when this share of the wave's devices has succeeded, at least one. With
            0 it starts when each device of the wave has an outcome, whatever it is.
        error_threshold: The rollout pauses when more than this share of the assigned devices failed ...
        min_failures: ... and at least this number of devices failed.
        device_deadline_seconds: A device has failed when it reports neither success nor failure for this long after
            its assignment. The time in which it says that it waits on purpose does not count.
        max_wait_seconds: A device that has waited for longer is not reached: neither a success nor a failure.
        gates: Comparisons of the new model with the previous one; one that fails stops the rollout.
        soak_seconds: A wave is complete so long after enough of its devices have succeeded; gates need this time.
        on_failure: ``pause``, or ``return``: failures and gates end the rollout, and each device gets the assignment
            back that it had before.
        approval: Who else must agree: ``start`` waits for `edgekit rollout approve` before the first wave, ``waves``
            before each one; empty waits for nobody.
        canaries: The devices that come before all others; None for no preference.
        consent: Each device waits until its user agrees; such a device is WAITING.
        window: The time of day in which devices change, in their own time zones, as in ``22:00-05:00``; empty for any.
        shadow: Each device compares the new model with its active one on this many of its own inputs before it
            activates it; 0 for none.
        shadow_seconds: Longest time of this comparison on a device.
        control: What gates compare the new model with, but ``agreement``: ``previous``, the device's own previous one,
            or ``cohort``: the change since then is compared with that of devices which still run the old version.
        per_hour: Devices that get the assignment within an hour, of the first wave; 0 for no limit. A tenth of them
            may get it at once. Devices that get it again are not counted.
        ramp: Each wave has the rate of the one before it times this.
    """

    waves: tuple[Wave, ...] = DEFAULT_WAVES
    success_threshold: float = 0.9
    error_threshold: float = 0.1
    min_failures: int = 1
    device_deadline_seconds: float = 600.0
    max_wait_seconds: float = 172_800.0
    gates: tuple[Gate, ...] = ()
    soak_seconds: float = 0.0
    on_failure: str = PAUSE
    approval: str = ""
    canaries: Cohort | None = None
    consent: bool = False
    window: str = ""
    shadow: int = 0
    shadow_seconds: float = 86_400.0
    control: str = PREVIOUS
    per_hour: float = 0.0
    ramp: float = 1.0

    def __post_init__(self) -> None:
        faults = []
        if not self.waves or self.waves[-1].count or self.waves[-1].share != 1.0:
            faults.append("the last wave must be 100%")
        chosen = [wave.cohort is not None and not wave.count for wave in self.waves]
        if chosen != sorted(chosen, reverse=True):
            faults.append("waves that are filters come before sizes")
        for wave in self.waves:
            if wave.cohort is not None and not wave.count:
                continue  # its size is not known yet
            if not 0 <= wave.count <= MAX_INTEGER or not (wave.count or 0 < wave.share <= 1):
                faults.append(f"wave {wave.text} is neither a share above 0% up to 100% nor a count")
        for unit in ("share", "count"):
            sized = [wave for wave in self.waves if wave.count or wave.cohort is None]
            sizes = [getattr(wave, unit) for wave in sized if bool(wave.count) == (unit == "count")]
            if any(later <= sooner for sooner, later in itertools.pairwise(sizes)):
                found = ", ".join(wave.text for wave in self.waves)
                alone = "; canaries are a wave of their own" if self.canaries is not None else ""
                faults.append(f"waves must rise, found {found}{alone}")
        for name in ("success_threshold", "error_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if not 1 <= self.min_failures <= MAX_INTEGER:
            faults.append(f"min_failures is {self.min_failures}, expected at least 1")
        for name in ("device_deadline_seconds", "max_wait_seconds"):
            faults.append(number_fault(name, getattr(self, name), 0, MAX_SECONDS, above=True))
        faults.append(number_fault("soak_seconds", self.soak_seconds, 0, MAX_SECONDS))
        faults.append(number_fault("shadow_seconds", self.shadow_seconds, 1, MAX_SECONDS))
        if not 0 <= self.shadow <= MAX_SHADOW:
            faults.append(f"shadow is {self.shadow}, expected 0 to {MAX_SHADOW} inputs")
        if not self.shadow and any(gate.metric == AGREEMENT for gate in self.gates):
            faults.append("an agreement gate needs --shadow, the number of inputs that each device compares")
        if self.on_failure not in (PAUSE, RETURN):
            faults.append(f"on_failure is {self.on_failure!r}, expected {PAUSE} or {RETURN}")
        if self.approval not in ("", AT_START, BEFORE_WAVES):
            faults.append(f"approval is {self.approval!r}, expected {AT_START} or {BEFORE_WAVES}")
        faults.append(self._control_fault())
        if self.per_hour:
            faults.append(number_fault("per_hour", self.per_hour, MIN_PER_HOUR, MAX_PER_HOUR))
        faults.append(number_fault("ramp", self.ramp, 1, MAX_RAMP))
        if self.ramp != 1.0 and not self.per_hour:
            faults.append("a ramp needs per_hour, the rate of the first wave")
        try:
            parse_hours(self.window, "maintenance windows")
        except ValueError as error:
            faults.append(str(error))
        names = [(gate.metric, gate.limit_ms) for gate in self.gates]
        if len(set(names)) < len(names) or len(names) > MAX_GATES:
            faults.append(f"there may be at most {MAX_GATES} gates, each of another kind")
        if faults := [fault for fault in faults if fault]:
            raise SettingsError("the rollout plan is not valid: " + "; ".join(faults))

    def _control_fault(self) -> str:
        if self.control not in (PREVIOUS, COHORT):
            return f"control is {self.control!r}, expected {PREVIOUS} or {COHORT}"
        if self.control == COHORT and not any(gate.metric != AGREEMENT for gate in self.gates):
            return "a control cohort needs a gate, for example --gate outcome"
        if self.control == COHORT and len(self.waves) == 1 and self.canaries is None:
            return "a control cohort needs a wave before that of 100%: devices of later waves are the cohort"
        return ""

    def check_size(self, devices: int) -> None:
        """Check that the waves rise for a fleet of this size, where shares and counts are mixed.

        Raises:
            SettingsError: a wave has fewer devices than the one before it.
        """
        for sooner, later in itertools.pairwise(self.waves):
            if later.limit(devices) < sooner.limit(devices):
                raise SettingsError(
                    f"waves must rise, but of {devices} devices {sooner.text} are {sooner.limit(devices)} and "
                    f"{later.text} are {later.limit(devices)}",
                    advice="Write the waves in the order of their sizes, for example --waves 10,10%,100%.",
                )


def parse_waves(text: str) -> tuple[Wave, ...]:
    """Waves as people write them: ``10%,50%,100%``, ``1,5,100%`` or ``label.ring == 0, name in (pi-1, pi-2), 100%``.

    Raises:
        SettingsError: a part is neither a share nor a count nor like a filter, which is parsed later.
    """
    waves = []
    for part in _parts(text):
        try:
            if part.endswith("%"):
                waves.append(Wave(share=float(part[:-1]) / 100))
            elif _FILTER.search(part):
                waves.append(Wave(cohort=Cohort(filter=part)))
            elif not int(part):
                raise SettingsError(
                    f"wave {part!r} has no device", advice="A count is at least 1, as in --waves 1,10%,100%."
                )
            else:
                waves.append(Wave(count=int(part)))
        except ValueError:
            raise SettingsError(
                f"wave {part!r} is neither a share such as 10%, nor a count such as 5, nor a filter",
                advice="Write waves as in --waves 10%,50%,100% or --waves 'label.ring == 0, 10%, 100%'.",
            ) from None
    return tuple(waves)


def _parts(text: str) -> list[str]:
    """The parts between the commas that separate waves."""
    commas = [found.start() for found in _COMMA.finditer(text) if found[1]]
    ends = zip([-1, *commas], [*commas, len(text)], strict=True)
    return [text[start + 1 : end].strip() for start, end in ends]

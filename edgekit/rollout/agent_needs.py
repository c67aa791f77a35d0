"""Which parts of an assignment or a plan older agents ignore. Pure rules, so that the control side can name devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from edgekit.bundle.compat import numbers
from edgekit.rollout.plan import RolloutPlan

CONSENT, WINDOW, GATES, UNINSTALL = "consent", "maintenance windows", "gates", "uninstalling"
SHADOW = "shadow comparisons"
SINCE = {
    CONSENT: "0.2.0",
    WINDOW: "0.2.0",
    GATES: "0.2.0",
    UNINSTALL: "0.2.0",
    SHADOW: "0.2.0",
}  # the first release that obeys it
MAX_NAMED = 10


class Ignoring(msgspec.Struct, frozen=True):
    """Devices whose agent ignores a part of an assignment or a plan.

    Attributes:
        release: The first release of edgekit that obeys it all.
        needs: What older agents ignore.
        devices: Version of edgekit by the name of each device that is too old.
    """

    release: str
    needs: tuple[str, ...]
    devices: dict[str, str]

    @property
    def message(self) -> str:
        """One line that names the devices, at most ten of them."""
        names = [f"{name} ({version})" for name, version in sorted(self.devices.items())]
        more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
        count = "1 device ignores" if len(names) == 1 else f"{len(names)} devices ignore"
        return (
            f"{count} {', '.join(self.needs)}, which needs edgekit {self.release}: "
            f"{', '.join([*names[:MAX_NAMED], *more])}; update edgekit there first"
        )


def plan_needs(plan: RolloutPlan) -> list[str]:
    """Features of a plan that agents must know."""
    asked = {CONSENT: plan.consent, WINDOW: bool(plan.window), GATES: bool(plan.gates), SHADOW: bool(plan.shadow)}
    return [need for need, used in asked.items() if used]


def ignoring(needs: Iterable[str], versions: Mapping[str, str]) -> Ignoring | None:
    """The devices that ignore one of `needs`; None if all obey.

    Args:
        needs: CONSENT, WINDOW, GATES, UNINSTALL or SHADOW.
        versions: Version of edgekit by the name of each device. Devices that have not reported theirs yet (an empty
            version) are not judged.
    """
    needed = [(need, SINCE[need]) for need in needs]
    if not needed:
        return None
    release = max((since for _, since in needed), key=numbers)
    old = {name: version for name, version in versions.items() if version and numbers(version) < numbers(release)}
    ignored = tuple(need for need, since in needed if any(numbers(one) < numbers(since) for one in old.values()))
    return Ignoring(release, ignored, old) if old else None


def can_shadow(version: str) -> bool:
    """True where an agent of this version of edgekit compares; false where the version is not known yet.

    An older agent activates the bundle at once.
    """
    return bool(version) and ignoring([SHADOW], {"": version}) is None

"""The choice of a device about a bundle whose runtime version is another one than those that it was proven on. Pure."""

from __future__ import annotations

import enum

from edgekit.bundle.evidence import Standing


class Policy(str, enum.Enum):
    """The setting `unproven_runtime`."""

    REFUSE = "refuse"  # do not use the bundle
    TEST = "test"  # run its golden samples first, also at a start
    WARN = "warn"  # use it, and say so


def refuses_update(found: Standing, policy: Policy) -> bool:
    """True if the device must not take a bundle. A version that gave wrong answers is refused under any policy."""
    return found is Standing.REFUTED or (found is Standing.UNPROVEN and policy is Policy.REFUSE)


def refuses_start(found: Standing, policy: Policy) -> bool:
    """True if the device must not load its installed bundle again: only where the owner asked for that.

    Otherwise an upgrade of a runtime could take every model off a fleet at once.
    """
    return found is not Standing.PROVEN and policy is Policy.REFUSE


def needs_test_at_start(found: Standing, policy: Policy) -> bool:
    """True if the golden samples must pass before the installed bundle answers.

    They always do after a version that gave wrong answers; an update runs them in any case.
    """
    return found is Standing.REFUTED or (found is Standing.UNPROVEN and policy is Policy.TEST)

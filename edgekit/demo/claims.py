"""Checks of the demo's claims. A claim that does not hold ends the demo."""

from __future__ import annotations

from edgekit.errors import EdgekitError


class DemoError(EdgekitError):
    """A claim of the demo does not hold."""


def expect(holds: bool, claim: str) -> None:
    """Check one claim.

    Raises:
        DemoError: the claim does not hold.
    """
    if not holds:
        raise DemoError(f"the demo's claim does not hold: {claim}")

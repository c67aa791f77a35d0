"""When a certificate is renewed, also by a device whose clock is wrong. Pure.

A certificate has dates of the controller's clock. A device whose clock is behind would never renew it, and one whose
clock is ahead would renew each new one at once. So the time that the certificate has been on the device counts too: a
clock that is wrong still runs at the right speed.
"""

from __future__ import annotations


def renewal_time(begin: float, end: float) -> float:
    """From when on a certificate is renewed: when a third of its life is left; all wall clock seconds."""
    return end - (end - begin) / 3


def is_due(begin: float, end: float, now: float) -> bool:
    """True where a certificate is to be renewed now."""
    return now > renewal_time(begin, end)


def is_aged(begin: float, end: float, kept: float) -> bool:
    """True where a certificate has been on the device for two thirds of its life.

    Args:
        begin, end: Of the certificate, wall clock seconds.
        kept: Seconds since it was written there, by the device's clock; negative where that was set back meanwhile.
    """
    return kept > 2 * (end - begin) / 3


def rest_seconds(begin: float, end: float, now: float) -> float:
    """How long a certificate that was just signed is not renewed again; 0 where the dates decide.

    A new one that is due already shows that the device's clock is ahead of the controller's.
    """
    return 2 * (end - begin) / 3 if is_due(begin, end, now) else 0.0

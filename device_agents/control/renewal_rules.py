"""When a certificate is renewed. Pure."""

from __future__ import annotations


def renewal_time(begin: float, end: float) -> float:
    """From when on a certificate is renewed: when a third of its life is left; all wall clock seconds."""
    return end - (end - begin) / 3


def is_due(begin: float, end: float, now: float) -> bool:
    """True where a certificate is to be renewed now."""
    return now > renewal_time(begin, end)

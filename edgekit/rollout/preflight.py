"""Which devices would refuse a bundle, from what they report. Pure rules, applied before anything is sent."""

from __future__ import annotations

from edgekit.bundle.order import is_older
from edgekit.mqtt.messages import Running
from edgekit.trust.assignment import Entry


def refusal(running: Running | None, entry: Entry, *, allowed: bool) -> str:
    """Why the device would refuse the bundle as a downgrade; empty if it would not.

    Args:
        running: What the device reports about the model; None if it has not reported.
        entry: The assignment's entry; its `downgrade` is what the operator asks for.
        allowed: The publisher allows a downgrade to this version.
    """
    if running is None or running.digest == entry.sha256 or (entry.downgrade and allowed):
        return ""
    seen = running.highest or running.version
    counter = running.release if seen == running.version else 0
    older = bool(seen) and is_older(entry.version, entry.release, than=seen, than_release=counter)
    reason = "its publisher does not allow a downgrade to it" if entry.downgrade else "no downgrade is requested"
    if older:
        return f"it has run {seen}, {entry.version} is older, and {reason}"
    if running.digest and not running.highest and entry.release < running.release:
        return (
            f"its edgekit takes the order of publishing for the order of versions: it runs release {running.release}, "
            f"{entry.version} is release {entry.release}, and {reason}"
        )
    return ""

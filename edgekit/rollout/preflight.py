"""Which devices would refuse a bundle, from what they report. Pure rules, applied before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edgekit.bundle.compat import Facts, mismatches
from edgekit.bundle.manifest import Manifest
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


def unfitting(manifest: Manifest, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Every reason why a device does not fit a bundle, one sentence each; none if it fits.

    Args:
        manifest: The bundle.
        facts: The device's facts, as it reports them. One that has not reported them, or not readably, is not judged.
    """
    known = {name: facts[name] for name in Facts.__struct_fields__ if name in facts}
    try:
        return tuple(mismatches(manifest, msgspec.convert(known, Facts)))
    except msgspec.ValidationError:
        return ()

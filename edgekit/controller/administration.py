"""Changes by administrators: enrollment codes, and the end of a device's life. Command line and API share this."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec

from edgekit.identity.join import SECRET_BYTES, StoredCode, check_limits, make_code
from edgekit.state import FleetState


class NewCode(msgspec.Struct, frozen=True):
    """A new enrollment code: its text, which is not shown again, its id, its end, and how many devices may use it."""

    code: str
    token: str
    expires: float
    quota: int


class Removed(msgspec.Struct, frozen=True):
    """A removed device.

    Attributes:
        device, fleet: What was removed, and from where.
        removed: True.
        certified: Whether the broker still accepts its certificate; `edgekit ca revoke` ends that.
    """

    device: str
    fleet: str
    removed: bool
    certified: bool


def new_code(
    state: FleetState,
    now: float,
    *,
    quota: int = 1,
    hours: float = 24.0,
    name: str = "",
    target: str = "",
    labels: Mapping[str, str] | None = None,
) -> NewCode:
    """Make an enrollment code.

    Args:
        state: The fleet.
        now: Wall clock seconds.
        quota: Devices that may use it.
        hours: How long it can be used.
        name, target: The only ones that it is for; empty for any.
        labels: Labels of the devices.

    Raises:
        SettingsError: quota or hours are out of range.
    """
    expires = now + hours * 3600
    check_limits(expires, quota, now)
    text, made = make_code(state.fleet, secrets.token_bytes(SECRET_BYTES + 5))
    state.certificates.add_code(StoredCode(made.token, made.key, expires, quota, name, target, dict(labels or {})), now)
    return NewCode(text, made.token, expires, quota)


def has_certificate(state: FleetState, name: str, now: float) -> bool:
    """Whether the broker accepts a certificate of a device."""
    return any(not one.revoked and one.expires > now for one in state.certificates.all(name))


def remove_device(state: FleetState, name: str, now: float) -> Removed:
    """Remove a device: it is refused from now on. Raises NotFoundError if it is not enrolled."""
    state.lifecycle.remove(name, now)
    return Removed(name, state.fleet, True, has_certificate(state, name, now))

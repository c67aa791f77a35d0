"""Open the fleet state, the registry and the trusted root; parse labels."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from edgekit.cli.common.console import needs_extra, note
from edgekit.errors import EdgekitError, NotFoundError, SettingsError
from edgekit.mqtt.topics import CONTROLLER
from edgekit.settings import ControlSettings, tls_files

if TYPE_CHECKING:
    from edgekit.mqtt.transport import MqttTransport
    from edgekit.registry import RegistryReader
    from edgekit.state import DeviceView, FleetState

_SQLITE = "sqlite:///"


@contextmanager
def fleet_state(settings: ControlSettings) -> Iterator[FleetState]:
    """Open the fleet's database for the duration of the command."""
    with needs_extra("controller"):
        from edgekit.state import open_fleet_state
    state = open_fleet_state(
        settings.database,
        settings.fleet,
        offline_after_seconds=settings.offline_after_seconds,
        author=author(),
    )
    try:
        yield state
    finally:
        state.close()


def control_transport(settings: ControlSettings) -> MqttTransport:
    """The connection of a controller to the broker, not started yet. Raises SettingsError."""
    with needs_extra("controller"):
        from edgekit.mqtt.options import TransportOptions
        from edgekit.mqtt.transport import MqttTransport
    tls = tls_files(settings)
    return MqttTransport(
        settings.broker,
        client_id=f"controller-{settings.fleet}-{secrets.token_hex(4)}",
        username=CONTROLLER,
        ca=tls.ca,
        certificate=tls.certificate,
        key=tls.key,
        options=TransportOptions(keepalive_seconds=settings.broker_keepalive_seconds),
    )


def broker_of_devices(settings: ControlSettings) -> str:
    """URL of the broker as devices reach it, without the user and password of the controller."""
    with needs_extra("controller"):
        from edgekit.mqtt.address import without_user
    return settings.device_broker or without_user(settings.broker)


def for_devices(settings: ControlSettings, broker: str | None) -> ControlSettings:
    """`settings` with the broker of a new device: `broker` where it is named, else that of all devices."""
    return msgspec.structs.replace(settings, broker=broker or broker_of_devices(settings))


def author() -> str:
    """The user and host that run this command, as the audit log names them."""
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user has no entry in the system's list, as in some containers
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown"


def known_devices(settings: ControlSettings) -> list[DeviceView]:
    """The devices of the fleet with their last reports; empty if its database cannot be read here."""
    path = settings.database.removeprefix(_SQLITE)
    if settings.database.startswith(_SQLITE) and not Path(path).exists():
        return []  # opening it would create a database
    try:
        with fleet_state(settings) as state:
            return list(state.devices.views(0.0, 0.0))
    except EdgekitError as error:
        note(f"what the devices of the fleet run is not known here: {error}")
        return []


@contextmanager
def registry_reader(settings: ControlSettings) -> Iterator[RegistryReader]:
    """Open and verify the registry; its cache is removed at the end of the command."""
    with needs_extra("registry"):
        from edgekit.registry import RegistryReader
        from edgekit.storage.stores import open_store
    root = read_root(settings)
    with TemporaryDirectory(prefix="edgekit-registry-") as cache:
        reader = RegistryReader(open_store(settings.registry), root, Path(cache))
        reader.refresh()
        yield reader


def read_root(settings: ControlSettings) -> bytes:
    """Read the trusted first root, ``root.json`` in the key folder.

    Raises:
        NotFoundError: it cannot be read.
    """
    path = settings.keys / "root.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"the trusted root {path} cannot be read: {error.strerror}", advice="Run: edgekit registry init"
        ) from error


def parse_labels(labels: tuple[str, ...]) -> dict[str, str]:
    """Parse labels of the form ``key=value``.

    Raises:
        SettingsError: a label has no ``=`` or no key.
    """
    pairs = [label.partition("=") for label in labels]
    for (key, equals, _), label in zip(pairs, labels, strict=True):
        if not key or not equals:
            raise SettingsError(f"label {label!r} is not of the form key=value", advice="Write for example site=north.")
    return {key: value for key, _, value in pairs}

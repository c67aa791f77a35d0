"""What the commands of the control side share: opening the fleet state and the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit.cli.common.console import needs_extra
from edgekit.errors import NotFoundError, SettingsError
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.registry import RegistryReader
    from edgekit.state import FleetState


@contextmanager
def fleet_state(settings: ControlSettings) -> Iterator[FleetState]:
    """The fleet's database, closed at the end of the command."""
    with needs_extra("controller"):
        from edgekit.state import open_fleet_state
    state = open_fleet_state(settings.database, settings.fleet)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def registry_reader(settings: ControlSettings) -> Iterator[RegistryReader]:
    """The registry, verified anew; its cache lives as long as the command."""
    with needs_extra("registry"):
        from edgekit.registry import RegistryReader
        from edgekit.storage.stores import open_store
    root = read_root(settings)
    with TemporaryDirectory(prefix="edgekit-registry-") as cache:
        reader = RegistryReader(open_store(settings.registry), root, Path(cache))
        reader.refresh()
        yield reader


def read_root(settings: ControlSettings) -> bytes:
    """The trusted first root, which lies beside the keys.

    Raises:
        NotFoundError: it is not there.
    """
    path = settings.keys / "root.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"the trusted root {path} cannot be read: {error.strerror}", advice="Run: edgekit registry init"
        ) from error


def parse_labels(labels: tuple[str, ...]) -> dict[str, str]:
    """``k=v`` options as a map.

    Raises:
        SettingsError: one has no ``=``, or no key.
    """
    pairs = [label.partition("=") for label in labels]
    for (key, equals, _), label in zip(pairs, labels, strict=True):
        if not key or not equals:
            raise SettingsError(f"label {label!r} is not of the form key=value")
    return {key: value for key, _, value in pairs}

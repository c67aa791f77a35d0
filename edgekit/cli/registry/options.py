"""Options of the commands of `edgekit registry` (--registry, --keys), and opening the registry for changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.common.console import control_settings, needs_extra
from edgekit.cli.common.passphrase import needed_passphrase
from edgekit.settings import ControlSettings

if TYPE_CHECKING:
    from edgekit.protocols import Store
    from edgekit.trust.repository import Repository

F = TypeVar("F", bound=Callable[..., Any])


def keys_option(function: F) -> F:
    """Add ``--keys``."""
    return click.option("--keys", type=click.Path(path_type=Path, file_okay=False), help="Key folder.")(function)


def registry_options(function: F) -> F:
    """Add ``--registry`` (parameter ``url``) and ``--keys``."""
    function = keys_option(function)
    return click.option("--registry", "url", metavar="URL", help="file://, s3://, gs:// or az:// store.")(function)


def opened(
    url: str | None, keys: Path | None, passphrase: Callable[[Path], str | None]
) -> tuple[ControlSettings, Store, Repository]:
    """Open the registry for changes.

    Args:
        url, keys: Values of --registry and --keys; None takes the settings.
        passphrase: Returns the passphrase of the keys in a folder.

    Returns:
        The settings, the registry's store, and the repository that signs.
    """
    settings = control_settings(registry=url, keys=keys)
    with needs_extra("registry"):
        from edgekit.storage.stores import open_store
        from edgekit.trust.repository import Repository
    store = open_store(settings.registry)
    return settings, store, Repository(store, settings.keys, passphrase(settings.keys))


def passphrase_of(file: Path | None) -> Callable[[Path], str | None]:
    """A function that returns the passphrase of a key folder; see `needed_passphrase`."""
    from edgekit.trust.keys import private_keys

    return lambda keys: needed_passphrase(file, private_keys(keys))

"""`--encrypt-for` of `edgekit registry publish`: encrypted copies of the bundles to publish."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import NotFoundError

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest

F = TypeVar("F", bound=Callable[..., Any])


def encrypt_option(function: F) -> F:
    """Add ``--encrypt-for``."""
    return click.option(
        "--encrypt-for",
        "encrypt_for",
        metavar="CLASS",
        multiple=True,
        help="Encrypt every file so that only devices of CLASS can open it (may be repeated). "
        "See: edgekit registry class",
    )(function)


@contextlib.contextmanager
def sealed_copies(
    bundles: Sequence[Path],
    manifests: Sequence[Manifest],
    classes: Sequence[str],
    keys: Path,
    passphrase: Callable[[], str | None],
    *,
    dry_run: bool,
) -> Iterator[tuple[Sequence[Path], Sequence[Manifest]]]:
    """Folders and manifests to publish: the bundles themselves, or encrypted copies of them if `classes` are named.

    The copies are removed when the context ends.

    Args:
        bundles: Folders of checked bundles.
        manifests: Their manifests, in the same order.
        classes: Names of the device classes that may open them.
        keys: The key folder.
        passphrase: Returns the passphrase of the keys; called only if it is needed.
        dry_run: Make no key; encrypt with a secret for this run if there is none yet.

    Raises:
        NotFoundError: a class has no public key in `keys`.
        SettingsError: as `content_secret` and `seal_bundle`.
    """
    if not classes:
        yield bundles, manifests
        return
    from edgekit.sealing.bundles import seal_bundle
    from edgekit.sealing.class_keys import content_secret, find_class

    chosen = [find_class(keys, name) for name in dict.fromkeys(classes)]
    try:
        secret = content_secret(keys, passphrase(), make=not dry_run)
    except NotFoundError:
        secret = secrets.token_bytes(32)  # for the printed plan only; the first publish makes the stored secret
    with TemporaryDirectory(prefix="edgekit-sealed-") as scratch:
        folders = [Path(scratch, str(number)) for number in range(len(bundles))]
        sealed = [
            seal_bundle(bundle, manifest, folder, classes=chosen, secret=secret)
            for bundle, manifest, folder in zip(bundles, manifests, folders, strict=True)
        ]
        yield folders, sealed

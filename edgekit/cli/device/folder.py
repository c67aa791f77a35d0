"""Writes the folder of a device: its private key, the trusted root, copied files and agent.toml."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli.common.console import needs_extra
from edgekit.errors import DiskError, SettingsError
from edgekit.mqtt.address import tls_context
from edgekit.rollout.cohort import Device
from edgekit.settings import AgentSettings, load_settings, tls_files
from edgekit.settings.device_files import KEY_FILE, ROOT_FILE, SAMPLE_KEY_FILE, SETTINGS_FILE, TLS_FILES, settings_toml

if TYPE_CHECKING:
    from edgekit.state import FleetState

_PUBLIC = (TLS_FILES["broker_ca"], TLS_FILES["broker_certificate"], SAMPLE_KEY_FILE)


def check_tls(broker: str, files: Mapping[str, Path]) -> None:
    """Check the TLS files, by loading them as the device will.

    Args:
        broker: URL of the broker, as the device reaches it.
        files: Files by key of TLS_FILES.

    Raises:
        SettingsError: the broker uses no TLS, a file cannot be read, or the files do not belong together.
    """
    flags = {"device": "", "fleet": "", "target": "", "broker": broker, **files}
    tls = tls_files(load_settings(AgentSettings, file=None, environ={}, flags=flags))
    if any(tls):
        tls_context(*tls)


def check_sample_key(path: Path) -> None:
    """Check the public key for samples. Raises SettingsError."""
    with needs_extra("controller"):
        from edgekit.sealing.class_keys import load_x25519_public
    load_x25519_public(path)


def write_folder(
    state: FleetState,
    folder: Path,
    agent: Mapping[str, Any],
    *,
    root: bytes,
    labels: dict[str, str],
    public_key: Path | None,
    copies: Mapping[str, Path | bytes],
) -> None:
    """Write the folder, then enroll the device; if enrolling fails, remove the written files.

    Args:
        state: Fleet state in which the device is enrolled.
        folder: Folder to write; created if it does not exist.
        agent: Settings for agent.toml; a value of None is left out.
        root: The TUF root.
        labels: Labels of the device.
        public_key: PEM of the public key, if the private key stays on the device; None makes a key pair.
        copies: Files to copy, or bytes to write, by their name in the folder. Only certificates are readable by others.

    Raises:
        DiskError: a file cannot be read or written.
        DataError, SettingsError: the public key is not valid, or the device is already enrolled.
    """
    with needs_extra("controller"):
        from edgekit.trust.keys import generate_key, load_public, public_path
    own = folder / KEY_FILE
    written = [folder / SETTINGS_FILE, folder / ROOT_FILE, *(folder / name for name in copies)]
    _check_free(written, own)
    if not folder.exists():
        written.append(folder)
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(_undo, written)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if public_key is not None:
                load_public(public_key)
                pem = public_key.read_text(encoding="utf-8")
            else:
                generate_key(own)
                written += [own, public_path(own)]
                pem = public_path(own).read_text(encoding="utf-8")
            for name, source in copies.items():
                _copy(source, folder / name)
            (folder / ROOT_FILE).write_bytes(root)
            (folder / SETTINGS_FILE).write_bytes(settings_toml(agent).encode())
            state.devices.enroll(
                Device(
                    name=agent["device"], target=agent["target"], public_key=pem, labels=labels, enrolled=time.time()
                )
            )
        except OSError as error:
            raise DiskError(f"{folder} cannot be written: {error.strerror or error}") from error
        unfinished.pop_all()


def _check_free(files: list[Path], key: Path) -> None:
    taken = [path.name for path in (*files, key) if path.exists()]
    if taken:
        raise SettingsError(f"{key.parent} already has {', '.join(taken)}", advice="Name another folder with -o.")


def _copy(source: Path | bytes, target: Path) -> None:
    if target.name not in _PUBLIC:
        target.touch(mode=0o600)  # before the secret is written
    if isinstance(source, bytes):
        target.write_bytes(source)
    else:
        shutil.copyfile(source, target)


def _undo(written: list[Path]) -> None:
    for path in written:
        if not path.is_dir():
            path.unlink(missing_ok=True)
    for folder in filter(Path.is_dir, written):
        folder.rmdir()

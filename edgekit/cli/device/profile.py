"""`edgekit profile BUNDLE --device ID`: finds the bundle in the registry and sends the command `profile`."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.cli.common.console import control_settings, note
from edgekit.cli.common.fleet import fleet_state, registry_reader
from edgekit.cli.device.results import await_answers
from edgekit.errors import ManifestError, NotFoundError
from edgekit.mqtt.command_arguments import PROFILE

if TYPE_CHECKING:
    from edgekit.state import StoredCommand


def profile_on_device(folder: Path, device: str, limits: dict[str, Any], expires: float) -> StoredCommand:
    """Send the command and wait for its end.

    Args:
        folder: The bundle.
        device: Name of the device.
        limits: ``seconds`` and ``memory_mib``.
        expires: Seconds in which the device may begin.

    Raises:
        ManifestError: the folder is no bundle.
        NotFoundError: the device is not enrolled, or the registry has no such bundle.
    """
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{folder} is not a bundle: {error}", advice="Give the folder that edgekit convert wrote."
        ) from error
    manifest, digest = parse_manifest(data), hashlib.sha256(data).hexdigest()
    settings = control_settings()
    with fleet_state(settings) as state:
        state.devices.get(device)
        with registry_reader(settings) as reader:
            release = reader.resolve(manifest.name, manifest.target, manifest.version)
        if release.sha256 != digest:
            raise NotFoundError(
                f"the registry's {manifest.name} {manifest.version} for {manifest.target} is {release.sha256[:12]}, "
                f"{folder} is {digest[:12]}",
                advice="Publish this bundle under another version, or name the folder of the published one.",
            )
        args = {"model": manifest.name, "version": manifest.version, "target": manifest.target, "digest": digest}
        now = time.time()
        sent = state.commands.add(device, PROFILE, args={**args, **limits}, now=now, expires=now + expires)
        note(f"profile number {sent.number} is sent to {device}")
        return await_answers(state, [sent])[0]

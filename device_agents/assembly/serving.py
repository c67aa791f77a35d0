"""Builds from settings what answers local applications: the inference service and the installed models.

Nothing of the control plane is imported here (MQTT, TUF, cryptography), so that a device answers soon after its start.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from device_agents.deployment import Limits
from device_agents.download.metered import MeteredLink
from device_agents.flag_file import is_set
from device_agents.inference.cloud.endpoints import CloudEndpoints
from device_agents.inference.options import ALL, ServiceOptions
from device_agents.inference.routing_rules import Reason
from device_agents.inference.service import InferenceService
from device_agents.machine import boot_id, machine_arch
from device_agents.storage.footprints import DiskFootprints
from device_agents.storage.journal import Journal
from device_agents.update.evidence_rules import Policy
from device_agents.update.installed import InstalledModels
from edgekit.clock import SystemClock
from edgekit.errors import DiskError, UnavailableError
from edgekit.runtimes.providers import Acceleration
from edgekit.sealing.opening import use_keyring
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import few_arenas
from edgekit.settings import AgentSettings
from edgekit.settings.groups import settings_group
from edgekit.storage.disk import FolderDisk
from edgekit.storage.files import try_lock

if TYPE_CHECKING:
    from edgekit.sealing.keyring import Keyring

_log = logging.getLogger(__name__)

AGENT_LOCK_NAME = "lock"
ENGINES = "engines"  # folder of TensorRT engines


@contextlib.contextmanager
def single_instance(state: Path) -> Iterator[None]:
    """Lock the state folder for this process; the system releases the lock when the process ends.

    Raises:
        UnavailableError: another agent has locked it.
        DiskError: the folder cannot be created or written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = _open_lock(state / AGENT_LOCK_NAME)
    except OSError as error:
        raise DiskError(f"the state folder {state} cannot be used: {error.strerror or error}") from error
    try:
        if not try_lock(handle):
            raise UnavailableError(
                f"another agent runs with the state folder {state}", advice="Stop it, or use another state folder."
            )
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a worn card is read-only; its models still answer


def make_inference(settings: AgentSettings) -> tuple[InferenceService, CloudEndpoints | None]:
    """The inference service, and the endpoints of the cloud tier if the settings name some. Call it once in a process.

    Raises:
        SettingsError: the API key or a class key cannot be read.
        NotFoundError: a class key file does not exist.
        ModuleNotFoundError: the settings name class keys, and cryptography is not installed.
    """
    few_arenas()
    use_keyring(_keyring(settings))
    cloud = _cloud(settings)
    for warning in threshold_warnings(settings):
        _log.warning("%s", warning)
    acceleration = settings_group(
        Acceleration,
        settings,
        required=settings.require_providers,
        engine_cache=str((settings.state / ENGINES).resolve()),
    )
    inference = InferenceService(
        cloud=cloud,
        options=settings_group(ModelOptions, settings),
        models=settings.models,
        service=settings_group(ServiceOptions, settings, acceleration=acceleration),
        footprints=DiskFootprints(FolderDisk(settings.state)),
        hold=lambda: fallback_hold(settings),
        disk=FolderDisk(settings.state),
    )
    return inference, cloud


def _keyring(settings: AgentSettings) -> Keyring | None:
    if not settings.class_keys:
        return None
    from edgekit.sealing.keyring import Keyring  # slow to import, and few devices have a class key

    return Keyring(settings.class_keys)


def _cloud(settings: AgentSettings) -> CloudEndpoints | None:
    if not settings.all_cloud_urls():
        return None
    from device_agents.assembly.cloud import make_cloud  # HTTP and TLS: slow to import, and only for a cloud tier

    return make_cloud(settings)


def make_installed(settings: AgentSettings, inference: InferenceService) -> InstalledModels:
    """The installed models of the device; it begins a new session in the journal.

    Raises:
        DataError, DiskError: the journal was written by another version, or cannot be read.
    """
    disk = FolderDisk(settings.state)
    journal = Journal(disk)
    journal.begin_session(boot_id())
    installed = InstalledModels(
        *(disk, journal, inference, SystemClock()),
        limits=settings_group(Limits, settings),
        unproven_runtime=Policy(settings.unproven_runtime),
        arch=machine_arch(),
    )
    inference.listen(installed.events.send_load)
    inference.listen_budgets(installed.events.send_budget)
    inference.certificates.use_evidence(installed.evidence.of, machine_arch())
    installed.evidence.on_renewed(inference.certificates.renew)
    return installed


def fallback_hold(settings: AgentSettings) -> Reason | None:
    """Why the cloud tier may not be called at present; None where it may be."""
    if is_set(settings.offline, settings.offline_file):
        return Reason.OFFLINE
    return None if settings.metered_fallback or not metered_link(settings).is_metered() else Reason.METERED


def threshold_warnings(settings: AgentSettings) -> list[str]:
    """The faults of thresholds that this release still accepts."""
    given = {"fallback_threshold": settings.fallback_threshold}
    own = {f"models.{name}.fallback_threshold": one.fallback_threshold for name, one in settings.models.items()}
    return [
        f"{name} is {value:g}, which sends every answer to the cloud tier. Scores are from 0 to 1. Write "
        f'{name.rpartition(".")[2]} = "{ALL}" to send all; the next release refuses numbers above 1.'
        for name, value in (given | own).items()
        if isinstance(value, float) and value > 1
    ]


def metered_link(settings: AgentSettings) -> MeteredLink:
    """The rules of a metered link, from the settings."""
    return settings_group(MeteredLink, settings, prefix="metered_", always=settings.metered)

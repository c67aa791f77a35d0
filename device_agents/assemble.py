"""Builds an agent and its inference from settings: the one place where the device's parts are chosen."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from device_agents.agent import Agent, AgentOptions
from device_agents.control.link import presence_will
from device_agents.deployment import Limits
from device_agents.download.metered import MeteredLink
from device_agents.download.throttle import parse_quiet_hours
from device_agents.facts import boot_id
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.service import InferenceService
from device_agents.storage.footprints import DiskFootprints
from device_agents.storage.journal import Journal
from device_agents.update.probation import ProbationLimits
from edgekit.bundle.compat import Facts, mismatches
from edgekit.clock import SystemClock
from edgekit.errors import DiskError, SettingsError, UnavailableError
from edgekit.mqtt.topics import check_device_name, check_name
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Will
from edgekit.runtimes.providers import Acceleration
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import use_keyring
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import few_arenas
from edgekit.settings import AgentSettings, tls_files
from edgekit.storage.disk import FolderDisk
from edgekit.trust.client import TrustClient
from edgekit.trust.keys import load_signer

LOCK_NAME = "lock"
ENGINES = "engines"  # of TensorRT, by what they were built for


@contextlib.contextmanager
def single_instance(state: Path) -> Iterator[None]:
    """Hold the state folder for this process alone; the system gives it back however the process ends.

    Raises:
        UnavailableError: another agent holds it.
        DiskError: the folder cannot be made or written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = _open_lock(state / LOCK_NAME)
    except OSError as error:
        raise DiskError(f"the state folder {state} cannot be used: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(
                f"another agent runs with the state folder {state}", advice="Stop it, or give this one another folder."
            ) from error
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a worn card has gone read-only; what it holds still answers


def make_inference(settings: AgentSettings) -> tuple[InferenceService, CloudClient | None]:
    """The inference service, and the client of the cloud tier where the settings name one; once in a process.

    Raises:
        SettingsError: the API key or a class key cannot be read.
        NotFoundError: there is no class key where the settings say.
    """
    few_arenas()
    use_keyring(Keyring(settings.class_keys))
    cloud = None
    if settings.cloud_url:
        key = _read_key(settings.cloud_api_key_file) if settings.cloud_api_key_file else ""
        cloud = CloudClient(settings.cloud_url, model=settings.cloud_model, api_key=key)
    inference = InferenceService(
        cloud=cloud,
        threads=settings.threads,
        options=ModelOptions(
            queue_limit=settings.queue_limit,
            instances=settings.instances,
            swap=settings.swap,
            isolation=settings.isolation,
            batch=settings.batch,
            run_timeout_seconds=settings.run_timeout_seconds,
        ),
        models=settings.models,
        acceleration=Acceleration(
            providers=settings.providers,
            required=settings.require_providers,
            gpu_memory_bytes=settings.gpu_memory_mib * 2**20,
            arena_bytes=settings.arena_mib * 2**20,
            engine_cache=str((settings.state / ENGINES).resolve()),
        ),
        memory_budget_bytes=settings.memory_budget_mib * 2**20,
        footprints=DiskFootprints(FolderDisk(settings.state)),
        deadline_ms=settings.deadline_ms or None,
        threshold=settings.fallback_threshold,
        cloud_timeout_seconds=settings.cloud_timeout_seconds,
    )
    return inference, cloud


def make_transport(settings: AgentSettings, *, client_id: str, will: Will | None = None) -> MqttTransport:
    """The broker connection; the user name is the device's unless the URL names one. Raises SettingsError."""
    username = None if "@" in settings.broker else settings.device
    tls = tls_files(settings)
    return MqttTransport(
        settings.broker,
        client_id=client_id,
        will=will,
        username=username,
        ca=tls.ca,
        certificate=tls.certificate,
        key=tls.key,
    )


def agent_options(settings: AgentSettings) -> AgentOptions:
    """The part of the settings that the agent itself reads. Raises SettingsError for what no topic or day has."""
    try:
        check_device_name(settings.device)
        check_name(settings.fleet)
        quiet = parse_quiet_hours(settings.quiet_hours)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return AgentOptions(
        device=settings.device,
        fleet=settings.fleet,
        heartbeat_seconds=settings.heartbeat_seconds,
        telemetry_seconds=settings.telemetry_seconds,
        max_bundle_bytes=settings.max_bundle_bytes,
        download_bytes_per_second=settings.download_bytes_per_second,
        download_budget=settings.download_budget,
        download_urls=settings.download_urls,
        quiet_hours=quiet,
        metered=MeteredLink(settings.metered, settings.metered_file, settings.metered_deployment_bytes),
        probation=ProbationLimits(
            max_error_share=settings.probation_max_error_share,
            max_latency_ms=settings.probation_max_latency_ms,
            requests=settings.probation_requests,
        ),
        limits=Limits(
            step_seconds=settings.step_timeout_seconds,
            probation_seconds=settings.probation_seconds,
            max_attempts=settings.deployment_attempts,
            total_seconds=settings.deployment_hours * 3600,
            crash_watch_seconds=settings.crash_watch_seconds,
        ),
    )


def make_agent(settings: AgentSettings, inference: InferenceService, facts: Facts) -> Agent:
    """The agent; begins a new session in the journal.

    Raises:
        SettingsError: the key or the broker's URL is not usable.
        NotFoundError: there is no key.
        DataError, DiskError: the journal is of another version, or cannot be read.
    """
    options = agent_options(settings)
    disk = FolderDisk(settings.state)
    signer = load_signer(settings.key)
    facts = msgspec.structs.replace(facts, seal_keys=Keyring(settings.class_keys).ids)
    root = read_root(settings.root)
    # From the clock: a device whose state folder was lost must not say what the control side holds for older.
    journal = Journal(disk, first_number=max(0, int(SystemClock().wall())))
    session = journal.begin_session(boot_id())
    will = presence_will(settings.fleet, settings.device, session)

    async def self_test(manifest: object, folder: Path) -> object:
        return await inference.try_bundle(manifest, folder)  # type: ignore[arg-type]

    made = Agent(
        options,
        disk=disk,
        journal=journal,
        transport=make_transport(settings, client_id=settings.device, will=will),
        trust=lambda fetch: TrustClient(settings.state / "tuf", root, fetch),
        inference=inference,
        self_test=self_test,
        mismatches=lambda manifest: mismatches(manifest, facts),
        facts=msgspec.to_builtins(facts),
        signer=signer,
        clock=SystemClock(),
    )
    inference.listen(made.tell_load)
    return made


def read_root(path: Path) -> bytes:
    """The TUF root that this device was born with. Raises SettingsError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the trusted root {path} cannot be read: {error.strerror or error}",
            advice="It is root.json of the folder that `edgekit device enroll` wrote.",
        ) from error


def root_version(data: bytes) -> int:
    """Version of a TUF root. Raises SettingsError when it is none, or not signed by its own keys."""
    try:
        root = Metadata[Root].from_bytes(data)
        root.verify_delegate(Root.type, root)
    except (RepositoryError, ValueError) as error:
        raise SettingsError(
            f"the trusted root is not a signed TUF root: {error}",
            advice="Copy root.json again from the folder that `edgekit device enroll` wrote.",
        ) from error
    return root.signed.version


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the API key file {path} cannot be read: {error}") from error


async def broker_answers(settings: AgentSettings, timeout_seconds: float) -> None:
    """Connect to the broker once, under another client id than the agent's.

    Raises:
        TransportError: it does not answer; says why.
        SettingsError: its URL is not usable.
    """
    transport = make_transport(settings, client_id=f"{settings.device}-check-{os.getpid()}")
    await transport.start()
    try:
        await transport.wait_connected(timeout_seconds)
    finally:
        await asyncio.shield(transport.stop())

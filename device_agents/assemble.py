"""Builds an agent and its inference service from settings; the only place that chooses the device's adapters."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from device_agents.agent import Agent
from device_agents.agent_parts import AgentParts
from device_agents.condition.reading import read_condition
from device_agents.control.link import presence_will
from device_agents.control.renewal import CertificateParts, mend_pair
from device_agents.deployment import Limits
from device_agents.download.metered import MeteredLink
from device_agents.download.options import DownloadOptions
from device_agents.download.throttle import parse_quiet_hours
from device_agents.facts import boot_id
from device_agents.flag_file import is_set
from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.options import ALL, ServiceOptions
from device_agents.inference.routing_rules import Reason
from device_agents.inference.service import InferenceService
from device_agents.options import AgentOptions
from device_agents.profiling.profiler import ProfileOptions
from device_agents.remote.logs import LogTail
from device_agents.remote.overlay import Overlay, RemoteSettings, with_values
from device_agents.remote_commands import RemoteParts
from device_agents.spool.making import make_spool
from device_agents.storage.footprints import DiskFootprints
from device_agents.storage.journal import Journal
from device_agents.update.evidence_rules import Policy
from device_agents.update.probation import ProbationLimits
from edgekit.bundle.compat import Facts, mismatches
from edgekit.clock import SystemClock
from edgekit.errors import DiskError, SettingsError, UnavailableError
from edgekit.mqtt.topics import check_device_name, check_name
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Transport, Will
from edgekit.runtimes.providers import Acceleration
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import use_keyring
from edgekit.serving.http.addresses import is_loopback
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.memory_usage import few_arenas
from edgekit.settings import AgentSettings, tls_files
from edgekit.settings.groups import settings_group
from edgekit.storage.disk import FolderDisk
from edgekit.storage.files import try_lock
from edgekit.trust.client import TrustClient
from edgekit.trust.keys import load_signer

_log = logging.getLogger(__name__)

AGENT_LOCK_NAME = "lock"
PROBE_SECONDS = 20.0
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
    """
    few_arenas()
    use_keyring(Keyring(settings.class_keys))
    cloud = make_cloud(settings)
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


def fallback_hold(settings: AgentSettings) -> Reason | None:
    """Why the cloud tier may not be called at present; None where it may be."""
    if is_set(settings.offline, settings.offline_file):
        return Reason.OFFLINE
    return None if settings.metered_fallback or not metered_link(settings).is_metered() else Reason.METERED


def sample_hold(settings: AgentSettings) -> str:
    """Why no sample may be sent at present; empty where the owner's settings let one be sent."""
    if is_set(settings.offline, settings.offline_file):
        return "this device is offline (settings offline and offline_file)"
    return "the link is metered" if metered_link(settings).is_metered() else ""


def endpoint_hold(settings: AgentSettings, url: str) -> Reason | None:
    """Why an endpoint may never be called: the API key would travel where it can be read; None where it may be."""
    parts = urlsplit(url)
    is_open = parts.scheme == "http" and not is_loopback(parts.hostname or "")
    refused = is_open and settings.cloud_api_key_file and not settings.cloud_unencrypted
    return Reason.UNENCRYPTED if refused else None


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


def make_cloud(settings: AgentSettings) -> CloudEndpoints | None:
    """The endpoints of the cloud tier that the settings name; None for none.

    Raises:
        SettingsError: the API key or a file for TLS cannot be read.
    """
    retries = RetryBudget()
    clients = make_cloud_clients(settings, retries)
    if not clients:
        return None

    def endpoints(model: str) -> tuple[CloudEndpoint, ...]:
        urls = settings.cloud_urls_of(model)
        return tuple(CloudEndpoint(without_user(url), clients[url], endpoint_hold(settings, url)) for url in urls)

    def close() -> None:
        for client in clients.values():
            client.close()

    own = {name: endpoints(name) for name, one in settings.models.items() if one.cloud_url is not None}
    return CloudEndpoints(endpoints(""), own, retries=retries, close=close)


def make_cloud_clients(settings: AgentSettings, retries: RetryBudget) -> dict[str, CloudClient]:
    """A client for each endpoint that the settings name, by URL. Raises SettingsError as `make_cloud`."""
    urls = settings.all_cloud_urls()
    if not urls:
        return {}
    key = _read_key(settings.cloud_api_key_file) if settings.cloud_api_key_file else ""
    tls = _cloud_tls(settings)
    return {url: CloudClient(url, api_key=key, tls=tls, may_retry=retries.take) for url in urls}


def without_user(url: str) -> str:
    """A URL without a user's name and password, for messages and metrics."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _cloud_tls(settings: AgentSettings) -> ssl.SSLContext | None:
    """For https: the authorities, read once and before requests come, and a certificate; None without https."""
    authority, certificate, key = settings.cloud_ca, settings.cloud_certificate, settings.cloud_key
    if not any(url.startswith("https://") for url in settings.all_cloud_urls()):
        return None
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password="")  # a prompt would stop the agent
    except OSError as error:
        names = ", ".join(str(path) for path in (authority, certificate, key) if path is not None)
        raise SettingsError(
            f"{names} cannot be used for TLS with the cloud tier: {error}",
            advice="cloud_ca, cloud_certificate and cloud_key name PEM files; the key has no password.",
        ) from error
    return context


def make_transport(settings: AgentSettings, *, client_id: str, will: Will | None = None) -> MqttTransport:
    """The broker connection; the user name is the device's name unless the URL has one. Raises SettingsError."""
    username = None if "@" in settings.broker else settings.device
    tls = tls_files(settings)
    if tls.certificate is not None and tls.key is not None:
        mend_pair(tls.certificate, tls.key)
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
    """The agent's options, from the settings.

    Raises:
        SettingsError: the device or fleet name cannot be part of a topic, or `quiet_hours` is not valid.
    """
    try:
        check_device_name(settings.device)
        check_name(settings.fleet)
        quiet_hours = parse_quiet_hours(settings.quiet_hours)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return settings_group(
        AgentOptions,
        settings,
        download=settings_group(DownloadOptions, settings, quiet_hours=quiet_hours, metered=metered_link(settings)),
        limits=settings_group(Limits, settings),
        probation=settings_group(ProbationLimits, settings, prefix="probation_"),
        unproven_runtime=Policy(settings.unproven_runtime),
    )


def metered_link(settings: AgentSettings) -> MeteredLink:
    """The rules of a metered link, from the settings."""
    return settings_group(MeteredLink, settings, prefix="metered_", always=settings.metered)


def make_agent(
    settings: AgentSettings,
    inference: InferenceService,
    facts: Facts,
    remote: RemoteParts | None = None,
    *,
    transport: Transport | None = None,
) -> Agent:
    """The agent; it begins a new session in the journal.

    Args:
        settings: Settings of the agent.
        inference: Answers local applications.
        facts: What this device measured of itself.
        remote: What remote commands need of this process; None for an agent that is embedded in an application.
        transport: Used instead of a connection to the broker.

    Raises:
        SettingsError: the key or the broker's URL is not usable.
        NotFoundError: the key file does not exist.
        DataError, DiskError: the journal was written by another version, or cannot be read.
    """
    options = agent_options(settings)
    disk = FolderDisk(settings.state)
    signer = load_signer(settings.key)
    facts = msgspec.structs.replace(facts, seal_keys=Keyring(settings.class_keys).ids)
    root = read_root(settings.root)
    journal = Journal(disk)
    session = journal.begin_session(boot_id())
    will = presence_will(settings.fleet, settings.device, session)

    async def self_test(manifest: object, folder: Path) -> object:
        return await inference.try_bundle(manifest, folder)  # type: ignore[arg-type]

    certificate = None
    if transport is None:
        connection = make_transport(settings, client_id=settings.device, will=will)
        transport, certificate = connection, _certificate_parts(settings, connection)
    parts = AgentParts(
        disk=disk,
        journal=journal,
        transport=transport,
        trust=lambda fetch: TrustClient(settings.state / "tuf", root, fetch),
        inference=inference,
        self_test=self_test,
        mismatches=lambda manifest: mismatches(manifest, facts),
        facts=msgspec.to_builtins(facts),
        signer=signer,
        clock=SystemClock(),
        condition=lambda: read_condition(settings.state),
        remote=(remote or RemoteParts())._replace(profile=_profile_options(settings)),
        certificate=certificate,
        spool=make_spool(settings, inference, disk, lambda: sample_hold(settings)),
    )
    agent = Agent(options, parts)
    inference.listen(agent.events.send_load)
    inference.listen_certificates(agent.events.send_certificate)
    inference.listen_budgets(agent.events.send_budget)
    inference.listen_drift(agent.events.send_drift)
    inference.certificates.use_evidence(agent.evidence.of, facts.arch)
    agent.evidence.on_renewed(inference.certificates.renew)
    inference.ask_consent(agent.consent)
    return agent


def _certificate_parts(settings: AgentSettings, transport: MqttTransport) -> CertificateParts | None:
    """The device's certificate, where it has a key of its own; one that a person manages in one file is left alone."""
    certificate, key = settings.broker_certificate, settings.broker_key
    if certificate is None or key is None:
        return None

    async def probe(pem: Path, private: Path) -> None:
        await check_broker(msgspec.structs.replace(settings, broker_certificate=pem, broker_key=private), PROBE_SECONDS)

    def adopt() -> None:
        transport.use_tls(settings.broker_ca, certificate, key)

    return CertificateParts(certificate, key, probe, adopt)


def make_remote(config: Path, flags: Mapping[str, Any], tail: LogTail, overlay: Overlay) -> RemoteParts:
    """The remote commands of an agent that has a process of its own.

    Args:
        config: The settings file.
        flags: Settings that were given at the start; they win over remote ones.
        tail: The newest lines of the log.
        overlay: Settings that were changed remotely.
    """

    def check(values: Mapping[str, str]) -> None:
        agent_options(with_values(config, flags, values))

    settings = RemoteSettings(overlay, check, restartable=True)
    return RemoteParts(logs=tail, overlay=overlay, settings=settings, restartable=True)


def _profile_options(settings: AgentSettings) -> ProfileOptions:
    keys = tuple(str(path) for path in settings.class_keys)
    return ProfileOptions(settings.max_bundle_bytes, threads=settings.threads, class_keys=keys)


def read_root(path: Path) -> bytes:
    """The first trusted TUF root, as enrollment wrote it. Raises SettingsError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the trusted root {path} cannot be read: {error.strerror or error}",
            advice="Copy root.json from the folder that `edgekit device enroll` wrote.",
        ) from error


def root_version(data: bytes) -> int:
    """Version of a TUF root. Raises SettingsError when `data` is not a root, or is not signed by its own keys."""
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


async def check_broker(settings: AgentSettings, timeout_seconds: float) -> None:
    """Connect to the broker once, with another client id than the agent's.

    Raises:
        TransportError: the broker does not answer; the message says why.
        SettingsError: the broker's URL is not usable.
    """
    transport = make_transport(settings, client_id=f"{settings.device}-check-{os.getpid()}")
    await transport.start()
    try:
        await transport.wait_connected(timeout_seconds)
    finally:
        await asyncio.shield(transport.stop())

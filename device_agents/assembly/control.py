"""Builds an agent from settings: the control plane around the inference service and the installed models."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from device_agents.agent import Agent
from device_agents.agent_parts import AgentParts
from device_agents.assembly.serving import make_installed, metered_link
from device_agents.condition.reading import read_condition
from device_agents.control.link import presence_will
from device_agents.control.renewal import CertificateParts, mend_pair
from device_agents.deployment import Limits
from device_agents.download.options import DownloadOptions
from device_agents.download.throttle import parse_quiet_hours
from device_agents.flag_file import is_set
from device_agents.inference.service import InferenceService
from device_agents.options import AgentOptions
from device_agents.profiling.profiler import ProfileOptions
from device_agents.remote.logs import LogTail
from device_agents.remote.overlay import Overlay, RemoteSettings, with_values
from device_agents.remote_commands import RemoteParts
from device_agents.spool.collector import NOT_KEPT
from device_agents.spool.making import SpoolParts, make_spool
from device_agents.update.evidence_rules import Policy
from device_agents.update.installed import InstalledModels
from device_agents.update.probation import ProbationLimits
from edgekit.bundle.compat import Facts, mismatches
from edgekit.clock import SystemClock
from edgekit.errors import SettingsError
from edgekit.mqtt.options import TransportOptions
from edgekit.mqtt.topics import check_device_name, check_name
from edgekit.mqtt.transport import MqttTransport
from edgekit.protocols import Disk, Transport, Will
from edgekit.sealing.keyring import Keyring
from edgekit.settings import AgentSettings, tls_files
from edgekit.settings.groups import settings_group
from edgekit.trust.client import TrustClient
from edgekit.trust.keys import load_signer

_log = logging.getLogger(__name__)

PROBE_SECONDS = 20.0


def sample_hold(settings: AgentSettings) -> str:
    """Why no sample may be sent at present; empty where the owner's settings let one be sent."""
    if is_set(settings.offline, settings.offline_file):
        return "this device is offline (settings offline and offline_file)"
    return "the link is metered" if metered_link(settings).is_metered() else ""


def make_transport(settings: AgentSettings, *, client_id: str, will: Will | None = None) -> MqttTransport:
    """The broker connection; the user name is the device's name unless the URL has one. Raises SettingsError."""
    tls = tls_files(settings)
    if tls.certificate is not None and tls.key is not None:
        mend_pair(tls.certificate, tls.key)
    return MqttTransport(
        settings.broker,
        client_id=client_id,
        will=will,
        username=settings.device,
        ca=tls.ca,
        certificate=tls.certificate,
        key=tls.key,
        options=TransportOptions(keepalive_seconds=settings.broker_keepalive_seconds),
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


def make_agent(
    settings: AgentSettings,
    inference: InferenceService,
    facts: Facts,
    remote: RemoteParts | None = None,
    *,
    transport: Transport | None = None,
    installed: InstalledModels | None = None,
) -> Agent:
    """The agent; without `installed` it begins a new session in the journal.

    Args:
        settings: Settings of the agent.
        inference: Answers local applications.
        facts: What this device measured of itself.
        remote: What remote commands need of this process; None for an agent that is embedded in an application.
        transport: Used instead of a connection to the broker.
        installed: The installed models, where they answer already.

    Raises:
        SettingsError: the key or the broker's URL is not usable.
        NotFoundError: the key file does not exist.
        DataError, DiskError: the journal was written by another version, or cannot be read.
    """
    options = agent_options(settings)
    signer = load_signer(settings.key)
    facts = msgspec.structs.replace(facts, seal_keys=Keyring(settings.class_keys).ids)
    root = read_root(settings.root)
    installed = installed or make_installed(settings, inference)
    disk, journal = installed.disk, installed.journal
    will = presence_will(settings.fleet, settings.device, journal.record.session)

    async def self_test(manifest: object, folder: Path) -> object:
        return await inference.try_bundle(manifest, folder)  # type: ignore[arg-type]

    certificate = None
    if transport is None:
        connection = make_transport(settings, client_id=settings.device, will=will)
        transport, certificate = connection, _certificate_parts(settings, connection)
    spool, no_spool = _spool(settings, inference, disk)
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
        spool=spool,
        installed=installed,
    )
    agent = Agent(options, parts)
    if no_spool:
        agent.events.send(NOT_KEPT, "", SettingsError.__name__, no_spool)
    inference.listen_certificates(agent.events.send_certificate)
    inference.listen_drift(agent.events.send_drift)
    inference.ask_consent(agent.consent)
    return agent


def _spool(settings: AgentSettings, inference: InferenceService, disk: Disk) -> tuple[SpoolParts | None, str]:
    """The spool, and why there is none: a damaged key must not stop the models. Samples in the spool stay there."""
    try:
        return make_spool(settings, inference, disk, lambda: sample_hold(settings)), ""
    except SettingsError as error:
        message = f"no samples are kept: {error}"
        _log.error("%s", message)
        return None, message


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

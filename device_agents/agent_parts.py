"""The adapters and services that an agent uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from securesystemslib.signer import CryptoSigner

from device_agents.condition.rules import Condition
from device_agents.control.renewal import CertificateParts
from device_agents.protocols import Inference, SelfTester, TrustFactory
from device_agents.remote_commands import RemoteParts
from device_agents.spool.making import SpoolParts
from device_agents.storage.journal import Journal
from device_agents.update.installed import InstalledModels
from edgekit.bundle.manifest import Manifest
from edgekit.protocols import Clock, Disk, Transport


class AgentParts(NamedTuple):
    """The adapters and services that an agent uses.

    Attributes:
        disk: The device's folder.
        journal: Journal on the same disk; its session has begun.
        transport: Connection to the broker, made with the will of that session. The agent starts and stops it.
        trust: Makes the verified metadata, given a blocking function that fetches one metadata file.
        inference: Answers local applications.
        self_test: Tests a staged bundle on its golden samples.
        mismatches: Gives every reason why a manifest does not fit this device.
        facts: What this device measured of itself at its start, for its reports.
        signer: The device's private key.
        clock: Time.
        condition: Reads the facts that change; it blocks for some milliseconds.
        remote: What remote commands need; by default only the self-test is offered.
        certificate: The TLS certificate to renew; None where there is none.
        spool: Samples for retraining; None where none may be kept.
        installed: The installed models on the same disk and journal, where they answer already; None makes them.
    """

    disk: Disk
    journal: Journal
    transport: Transport
    trust: TrustFactory
    inference: Inference
    self_test: SelfTester
    mismatches: Callable[[Manifest], list[str]]
    facts: dict[str, Any]
    signer: CryptoSigner
    clock: Clock
    condition: Callable[[], Condition] = Condition
    remote: RemoteParts = RemoteParts()
    certificate: CertificateParts | None = None
    spool: SpoolParts | None = None
    installed: InstalledModels | None = None

"""Builds the spool of an agent from its settings."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from device_agents.inference.cloud.budget_rules import Budget
from device_agents.inference.egress_rules import release
from device_agents.inference.service import InferenceService
from device_agents.spool.collector import CollectOptions, Collector
from device_agents.spool.rules import Rule
from device_agents.spool.store import FOLDER, Spool
from device_agents.spool.uploader import Timings
from edgekit.clock import SystemClock
from edgekit.errors import DiskError, SealError, SettingsError
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.protocols import Disk
from edgekit.sealing.class_keys import load_x25519_public
from edgekit.sealing.messages import seal_message
from edgekit.settings import AgentSettings
from edgekit.settings.groups import MIB

_log = logging.getLogger(__name__)


class SpoolParts(NamedTuple):
    """The spool of an agent.

    Attributes:
        spool: The stored samples.
        collector: Chooses and stores them.
        hold: Says why the owner's settings let nothing be sent now; empty where they do.
        allowed: Whether inputs of a model may leave the device.
        timings: Intervals of sending.
    """

    spool: Spool
    collector: Collector
    hold: Callable[[], str]
    allowed: Callable[[str], bool]
    timings: Timings = Timings()


def make_spool(
    settings: AgentSettings, inference: InferenceService, disk: Disk, hold: Callable[[], str]
) -> SpoolParts | None:
    """The spool, which observes `inference`; None without a key. Then what was stored before is removed.

    A disk that fails gives no spool and a warning, because the models of the device still answer.

    Raises:
        SettingsError: the public key cannot be read.
    """
    public = None if settings.sample_key is None else _load_public(settings.sample_key)
    try:
        if public is None:
            disk.remove(FOLDER)
            return None
        spool = Spool(disk, settings.spool_mib * MIB)
    except DiskError as error:
        _log.warning("no samples are kept, and those in the spool stay as they are: %s", error)
        return None
    collector = Collector(
        settings.device,
        CollectOptions(
            Rule(tuple(SampleReason(reason) for reason in settings.collect), settings.collect_share),
            Budget(settings.collect_per_day, settings.collect_bytes_per_day),
        ),
        spool,
        lambda data, context: seal_message(data, public, X25519PrivateKey.generate(), context),
        disk,
        SystemClock(),
        random.random,
    )
    inference.give_samples(collector)

    def allowed(model: str) -> bool:
        return not release(inference.send_inputs(model), model, {}).fault

    return SpoolParts(spool, collector, hold, allowed)


def _load_public(path: Path) -> bytes:
    """The operator's public key, after a trial: later, nothing may fail for it."""
    public = load_x25519_public(path)
    try:
        seal_message(b"", public, X25519PrivateKey.generate(), b"")
    except SealError as error:
        raise SettingsError(f"sample_key {path} cannot be used: {error}") from error
    return public

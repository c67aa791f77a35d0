"""Options of the agent: its name, its intervals, and the limits of downloads and deployments."""

from __future__ import annotations

import msgspec

from device_agents.condition.watch import SURVEY_SECONDS as CONDITION_SURVEY_SECONDS
from device_agents.control.assignment import RETRY_SECONDS
from device_agents.control.crash_events import CRASH_SURVEY_SECONDS
from device_agents.control.memory_events import SURVEY_SECONDS
from device_agents.control.requests import METADATA_TIMEOUT_SECONDS
from device_agents.deployment import Limits
from device_agents.download.options import DownloadOptions
from device_agents.update.evidence_rules import Policy
from device_agents.update.probation import ProbationLimits
from device_agents.update.runner import JOURNAL_RETRY_SECONDS
from device_agents.update.runtime_evidence import SURVEY_SECONDS as EVIDENCE_SURVEY_SECONDS


class AgentTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals and time-outs of the agent that are not settings, in seconds.

    Attributes:
        no_broker_seconds: After this time without a broker, the agent logs it.
        assignment_retry_seconds: Delay before an assignment is tried again, and the limit of its doubling.
        metadata_timeout_seconds: How long to wait for each part of a metadata file.
        journal_retry_seconds: Delay before a failed write of the journal is tried again.
        crash_survey_seconds: Interval at which the crash counters are read.
        memory_survey_seconds: Interval at which the memory of models is measured.
        evidence_survey_seconds: Interval at which evidence is fetched, while a runtime's version has none.
        condition_survey_seconds: Interval at which the facts that change are read.
    """

    no_broker_seconds: float = 3.0
    assignment_retry_seconds: tuple[float, float] = RETRY_SECONDS
    metadata_timeout_seconds: float = METADATA_TIMEOUT_SECONDS
    journal_retry_seconds: float = JOURNAL_RETRY_SECONDS
    crash_survey_seconds: float = CRASH_SURVEY_SECONDS
    memory_survey_seconds: float = SURVEY_SECONDS
    evidence_survey_seconds: float = EVIDENCE_SURVEY_SECONDS
    condition_survey_seconds: float = CONDITION_SURVEY_SECONDS


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one agent; fields with the name of an agent setting mean the same.

    Attributes:
        device, fleet: Names of the device and its fleet.
        heartbeat_seconds: Interval at which the report is repeated.
        telemetry_seconds: Interval at which counters are sent.
        download: Limits of downloads.
        limits: Times and counts of a deployment.
        probation: Limits for live requests in probation.
        unproven_runtime: What to do with a bundle on a runtime version that it has no evidence for.
        timings: Other intervals and time-outs.
    """

    device: str
    fleet: str
    heartbeat_seconds: float = 30.0
    telemetry_seconds: float = 60.0
    download: DownloadOptions = DownloadOptions()
    limits: Limits = Limits()
    probation: ProbationLimits = ProbationLimits()
    unproven_runtime: Policy = Policy.WARN
    timings: AgentTimings = AgentTimings()

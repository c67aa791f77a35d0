"""Settings reach the value objects of each part by their names, and none is lost on the way."""

from __future__ import annotations

from pathlib import Path

import msgspec

from device_agents.assembly.control import agent_options
from device_agents.assembly.serving import ENGINES, metered_link
from device_agents.deployment import Limits
from device_agents.download.options import DownloadOptions
from device_agents.inference.options import ServiceOptions
from device_agents.options import AgentOptions
from device_agents.update.probation import ProbationLimits
from edgekit.runtimes.providers import Acceleration
from edgekit.serving.models.options import ModelOptions
from edgekit.settings import AgentSettings
from edgekit.settings.groups import MIB, settings_group

CHANGED = AgentSettings(
    device="pi-1",
    fleet="lab",
    target="x86-64",
    heartbeat_seconds=31.0,
    telemetry_seconds=61.0,
    threads=2,
    queue_limit=5,
    deadline_ms=250.0,
    instances=3,
    swap="load-first",
    isolation="process",
    batch=4,
    run_timeout_seconds=7.0,
    providers=("CPUExecutionProvider",),
    require_providers=True,
    gpu_memory_mib=11,
    arena_mib=12,
    memory_budget_mib=13,
    max_bundle_bytes=14,
    download_bytes_per_second=15,
    download_urls=False,
    download_budget=1.5,
    quiet_hours="08:00-18:30",
    metered=True,
    metered_file=Path("metered"),
    metered_deployment_bytes=16,
    deployment_attempts=17,
    deployment_hours=18.0,
    step_timeout_seconds=19.0,
    probation_seconds=20.0,
    probation_requests=21,
    probation_max_error_share=0.22,
    probation_max_latency_ms=23.0,
    crash_watch_seconds=24.0,
    cloud_timeout_seconds=25.0,
    fallback_threshold=0.26,
    cloud_model="big",
    send_inputs="never",
    cloud_inputs="original",
    telemetry_inputs="always",
    drift_seconds=27.0,
    drift_error=0.0028,
)


def test_the_agents_options_come_from_the_settings() -> None:
    """Each of them differs from its default, so a setting that is not passed on is seen."""
    options = agent_options(CHANGED)
    assert (options.device, options.fleet) == ("pi-1", "lab")
    assert (options.heartbeat_seconds, options.telemetry_seconds) == (31.0, 61.0)
    assert options.limits == Limits(
        step_timeout_seconds=19.0,
        probation_seconds=20.0,
        deployment_attempts=17,
        deployment_hours=18.0,
        crash_watch_seconds=24.0,
    )
    assert options.probation == ProbationLimits(max_error_share=0.22, max_latency_ms=23.0, requests=21)
    link = metered_link(CHANGED)
    assert (link.always, link.file, link.deployment_bytes) == (True, Path("metered"), 16)
    hours = options.download.quiet_hours
    assert str(hours) == "08:00-18:30"
    assert options.download == DownloadOptions(
        max_bundle_bytes=14,
        download_bytes_per_second=15,
        download_budget=1.5,
        download_urls=False,
        quiet_hours=hours,
        metered=link,
    )


def test_the_options_of_inference_come_from_the_settings() -> None:
    """Sizes in MiB become bytes."""
    assert settings_group(ModelOptions, CHANGED) == ModelOptions(
        queue_limit=5, instances=3, swap="load-first", isolation="process", batch=4, run_timeout_seconds=7.0
    )
    acceleration = settings_group(Acceleration, CHANGED, required=True, engine_cache=ENGINES)
    assert acceleration == Acceleration(
        providers=("CPUExecutionProvider",),
        required=True,
        gpu_memory_bytes=11 * MIB,
        arena_bytes=12 * MIB,
        engine_cache=ENGINES,
    )
    assert settings_group(ServiceOptions, CHANGED) == ServiceOptions(
        threads=2,
        memory_budget_bytes=13 * MIB,
        deadline_ms=250.0,
        fallback_threshold=0.26,
        cloud_model="big",
        send_inputs="never",
        cloud_inputs="original",
        cloud_timeout_seconds=25.0,
        telemetry_inputs="always",
        drift_seconds=27.0,
        drift_error=0.0028,
    )


def test_defaults_are_the_same_in_settings_and_value_objects() -> None:
    """An application that embeds the agent gets what a settings file without keys gives."""
    settings = AgentSettings(device="pi-1", fleet="lab", target="x86-64")
    assert agent_options(settings) == AgentOptions(device="pi-1", fleet="lab")
    for kind in (ModelOptions, ServiceOptions, Acceleration):
        made = settings_group(kind, settings)
        assert msgspec.to_builtins(made) == msgspec.to_builtins(kind())

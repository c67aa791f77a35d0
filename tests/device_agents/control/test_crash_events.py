"""Crashes of a model's own process: they are counted, reported together, and judged in probation."""

import asyncio

import numpy as np
import pytest

from device_agents.control.crash_events import Crashed, CrashNotifier
from device_agents.inference.service import InferenceService
from device_agents.options import AgentTimings
from device_agents.update.probation import ProbationLimits, live_faults
from edgekit.mqtt import messages
from edgekit.serving.worker.errors import WorkerCrashedError, WorkerRestartingError
from edgekit.serving.worker.runtime import Backoff, WorkerRuntime
from edgekit.trust.envelopes import open_envelope
from tests.simulators import crashing
from tests.simulators.device import Desk, Device
from tests.simulators.small_models import SURE, onnx_bundle
from tests.simulators.transport import MemoryBroker


def counted(**models):
    """Counters of models that crashed so often."""
    return {name: {"crashes": float(number), "runs": 5.0} for name, number in models.items()}


def test_the_first_crash_is_told_at_once_and_a_thousand_a_minute_are_told_as_one():
    """Each model has its own minute, and none is lost."""
    notifier = CrashNotifier(60.0)
    assert notifier.survey(counted(a=0, b=0), 0.0) == []
    assert notifier.survey(counted(a=1, b=0), 1.0) == [Crashed("a", 1, 1)]
    assert notifier.survey(counted(a=900, b=2), 30.0) == [Crashed("b", 2, 2)]
    assert notifier.survey(counted(a=1001, b=2), 60.9) == []
    assert notifier.survey(counted(a=1001, b=2), 61.0) == [Crashed("a", 1000, 1001)]
    assert notifier.survey(counted(a=1001, b=2), 1e6) == []


def test_a_model_of_which_nothing_is_known_did_not_crash():
    """Counters of a service without processes of its own have none of them."""
    assert CrashNotifier().survey({"a": {"runs": 1.0}}, 0.0) == []


def demand(number):
    return {"x": np.full((1, 3), number, np.float32)}


def open_crashing(manifest, folder):
    """Open a bundle in a worker process that crashes on demand and is restarted slowly."""
    return WorkerRuntime(manifest, folder, loader=crashing.LOADER, backoff=Backoff(first_seconds=30.0))


async def test_crashes_are_counted_over_every_bundle_and_refusals_after_them_are_errors(tmp_path):
    """Requests that come while the process starts are not the queue's fault; another bundle starts no new count."""
    manifest = onnx_bundle(tmp_path, batch=None)
    async with InferenceService(load=open_crashing) as service:
        await service.activate("small", manifest, tmp_path)
        before = service.counters()["small"]
        assert before["crashes"] == 0
        with pytest.raises(WorkerCrashedError):
            await service.infer("small", demand(crashing.SEGFAULT))
        while not service.gauges()["small"]["restarts"]:  # noqa: ASYNC110 - another thread's work
            await asyncio.sleep(0.01)
        with pytest.raises(WorkerCrashedError):
            await service.infer("small", demand(crashing.EXIT))
        for _ in range(2):
            with pytest.raises(WorkerRestartingError):
                await service.infer("small", {"x": SURE})
        found = service.counters()["small"]
        assert {name: found[name] - before[name] for name in ("crashes", "runs", "runtime_errors", "shed")} == {
            "crashes": 2,
            "runs": 4,
            "runtime_errors": 4,
            "shed": 0,
        }
        (fault,) = live_faults(before, found, ProbationLimits(max_error_share=0.9), final=True)
        assert "its process crashed 2 times" in fault
        await service.activate("small", manifest, tmp_path)
        await service.infer("small", {"x": SURE})
        with pytest.raises(WorkerCrashedError):
            await service.infer("small", demand(crashing.EXIT))
        assert service.counters()["small"]["crashes"] == 3
        await service.deactivate("small")
        assert service.counters()["small"]["crashes"] == 3


def test_a_runtime_error_is_no_crash():
    """A crash is counted as a crash, not as another fault."""
    (fault,) = live_faults({}, {"runs": 1.0, "runtime_errors": 1.0}, ProbationLimits(), final=True)
    assert "crashed" not in fault


def test_a_crash_that_failed_no_request_counts_as_an_error():
    """After the crash, each of the joined requests was answered alone."""
    limits = ProbationLimits(max_error_share=0.05)
    assert live_faults({}, {"runs": 30.0, "crashes": 2.0}, limits, final=False)
    assert not live_faults({}, {"runs": 40.0, "crashes": 2.0}, limits, final=True)
    assert len(live_faults({}, {"runs": 30.0, "runtime_errors": 2.0, "crashes": 2.0}, limits, final=True)) == 1


async def test_the_controller_hears_of_crashes(tmp_path):
    """Signed, with counts and the version that runs."""
    desk = Desk(tmp_path / "desk", MemoryBroker())
    await desk.start()
    device = Device(tmp_path / "device", desk.broker, desk.root)
    device.timings = AgentTimings(crash_survey_seconds=0.02)
    live, crashed = device.inference.counters, {"crashes": 0.0}
    device.inference.counters = lambda: {"digits": {**live()["digits"], **crashed}}
    await device.start()
    desk.assign(desk.publish("1.0.0"))
    await device.settled("1.0.0")
    crashed["crashes"] = 3.0

    def told():
        events = [open_envelope(p, messages.Event, device.signer.public_key) for p in desk.said("event")]
        return [event for event in events if event.kind == "model-crashed"]

    await device.until(told)
    (event,) = told()
    assert (event.model, event.error) == ("digits", "WorkerCrashedError")
    assert event.detail == {"version": "1.0.0", "crashes": 3, "total": 3}
    await device.stop()

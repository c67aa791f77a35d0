"""The metrics of a device's inference service, against the table of all metrics."""

from __future__ import annotations

import re
from pathlib import Path

from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.service import InferenceService
from edgekit.errors import CloudError
from edgekit.serving.http.metrics import METRICS, gauges_of, render
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.drifting import bundle_with_reference
from tests.simulators.small_models import UNSURE

# Tested in tests/edgekit/serving/test_endpoints.py and tests/edgekit/serving/http/test_metrics.py.
OF_THE_CLOUD_TIER = (
    "edgekit_key_requests_total",
    "edgekit_model_latency_seconds",
    "edgekit_model_unusable_answers_total",
)


async def test_every_metric_of_a_device_is_in_the_table_and_every_entry_is_exposed(tmp_path: Path) -> None:
    """The text of /metrics after one request, with HTTP and gRPC, is a device's part of the table."""
    first, second = MemoryCloud(CLOUD_OUTPUTS), MemoryCloud(CLOUD_OUTPUTS)
    first.fault = CloudError("away")
    endpoints = CloudEndpoints((CloudEndpoint("http://a", first), CloudEndpoint("http://b", second)))
    async with InferenceService(cloud=endpoints) as service:
        await service.activate("small", bundle_with_reference(tmp_path, name="small"), tmp_path)
        await service.infer("small", {"x": UNSURE})
        text = render(service.counters(), {200: 1}, {"OK": 1}, gauges_of(service)).decode()
    expected = [metric for metric in METRICS if metric.name not in OF_THE_CLOUD_TIER]
    printed = re.findall(r"^(edgekit_\w+)\{", text, re.MULTILINE)
    assert printed == [metric.name for metric in expected]
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    assert helps == {metric.name: metric.help for metric in expected}

"""Several endpoints of the cloud tier: the next one answers where one fails, within one deadline and few retries."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.assembly.serving import make_inference
from device_agents.inference.cloud.answer_times import SHORTEST_TRY_SECONDS, AnswerTimes
from device_agents.inference.cloud.endpoints import CloudEndpoint, CloudEndpoints
from device_agents.inference.cloud.http_client import HttpClient, NoAnswerError
from device_agents.inference.cloud.retry_budget import CALLS_FOR_ONE_RETRY, MOST_SAVED, RetryBudget
from device_agents.inference.routing_rules import Reason
from device_agents.inference.service import InferenceService
from edgekit.errors import CloudError, SettingsError, UnavailableError
from edgekit.serving.models.options import ModelSettings
from tests.device_agents.diagnostics.test_cloud_check import device, found, tier
from tests.device_agents.inference.test_service import HeldClock, where
from tests.edgekit.settings.test_cloud_settings import read
from tests.simulators.cloud import CLOUD_OUTPUTS, MemoryCloud
from tests.simulators.small_models import SURE, UNSURE, onnx_bundle

A, B = "http://a.example", "http://b.example"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A server that accepts connections and never answers; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_the_next_endpoint_answers_and_the_answer_names_it(tmp_path: Path) -> None:
    """The first one's failures cost retries within the budget; then its breaker is open and the second is asked."""
    first, second, clock = MemoryCloud(CLOUD_OUTPUTS), MemoryCloud(CLOUD_OUTPUTS), HeldClock()
    endpoints = CloudEndpoints((CloudEndpoint(A, first), CloudEndpoint(B, second)))
    first.fault = CloudError("away")
    async with InferenceService(cloud=endpoints, clock=clock) as service:
        await service.activate("small", onnx_bundle(tmp_path), tmp_path)
        answer = await service.infer("small", {"x": UNSURE})
        assert where(answer) == ("cloud", "low-score")
        assert answer.parameters["edgekit_cloud_endpoint"] == B
        refused = [where(await service.infer("small", {"x": UNSURE})) for _ in range(2)]
        assert refused == [("degraded", "cloud-failed")] * 2  # the one retry of a device that just began is taken
        for _ in range(30):
            assert (await service.infer("small", {"x": UNSURE})).parameters["edgekit_cloud_endpoint"] == B
        assert (len(first.asked), len(second.asked)) == (3, 31)
        first.fault = None
        clock.now += 1.0
        answers = [await service.infer("small", {"x": UNSURE}) for _ in range(2)]
        assert [one.parameters["edgekit_cloud_endpoint"] for one in answers] == [A, A]
        counters = service.counters()["small"]
    assert (counters[f"cloud_answers.{A}"], counters[f"cloud_answers.{B}"], counters["cloud_retries"]) == (2, 31, 1)
    assert (counters["cloud_failures.failed"], counters["cloud_failures.retry-budget"]) == (3, 2)
    assert "cloud_failures.breaker-open" not in counters  # each of these requests was answered


async def test_a_model_has_its_own_endpoints(tmp_path: Path) -> None:
    """Its list wins over the agent's; an empty one means no cloud tier for it; breakers are not shared."""
    common, own = MemoryCloud(CLOUD_OUTPUTS), MemoryCloud(CLOUD_OUTPUTS)
    endpoints = CloudEndpoints((CloudEndpoint(A, common),), {"own": (CloudEndpoint(B, own),), "none": ()})
    async with InferenceService(cloud=endpoints) as service:
        for name in ("small", "own", "none"):
            await service.activate(name, onnx_bundle(tmp_path / name, name=name), tmp_path / name)
        assert (await service.infer("small", {"x": UNSURE})).parameters["edgekit_cloud_endpoint"] == A
        assert (await service.infer("own", {"x": UNSURE})).parameters["edgekit_cloud_endpoint"] == B
        assert where(await service.infer("none", {"x": UNSURE})) == ("local", "no-cloud")
        with pytest.raises(UnavailableError, match="no cloud tier is configured"):
            await service.infer("none", {"x": UNSURE}, route="cloud-only")


async def test_an_endpoint_that_may_not_be_called_is_left_out(tmp_path: Path) -> None:
    """Its key would travel in clear, so only the other one is called; with no other one the reason is told."""
    open_, other = MemoryCloud(CLOUD_OUTPUTS), MemoryCloud(CLOUD_OUTPUTS)
    held = CloudEndpoint(A, open_, Reason.UNENCRYPTED)
    endpoints = CloudEndpoints((held, CloudEndpoint(B, other)), {"held": (held,)})
    async with InferenceService(cloud=endpoints) as service:
        for name in ("small", "held"):
            await service.activate(name, onnx_bundle(tmp_path / name, name=name), tmp_path / name)
        assert where(await service.infer("small", {"x": UNSURE})) == ("cloud", "low-score")
        other.fault = CloudError("away")
        assert where(await service.infer("small", {"x": UNSURE})) == ("degraded", "cloud-failed")
        assert where(await service.infer("held", {"x": UNSURE})) == ("degraded", "unencrypted")
    assert open_.asked == []


async def test_a_silent_endpoint_leaves_time_for_the_next_one(tmp_path: Path) -> None:
    """Real sockets: the first never answers, the second does, within the request's deadline."""
    with black_hole() as silent:
        async with tier(tmp_path / "tier") as url:
            settings = device(
                tmp_path, url, cloud_model="big", models={"small": ModelSettings(cloud_url=(silent, url))}
            )
            service, cloud = make_inference(settings)
            assert cloud is not None
            async with service:
                await service.activate("small", onnx_bundle(tmp_path / "b"), tmp_path / "b")
                answer = await service.infer("small", {"x": UNSURE}, deadline_ms=3000)
                assert answer.parameters["edgekit_cloud_endpoint"] == url
                for _ in range(2):
                    await service.infer("small", {"x": UNSURE}, deadline_ms=400)
                answer = await service.infer("small", {"x": UNSURE}, deadline_ms=3000)
                assert answer.parameters["edgekit_cloud_endpoint"] == url  # the first one's breaker is open
            cloud.close()
            assert await found(settings, tmp_path, "fallback") == f"{url}, {silent}"


async def test_check_asks_each_endpoint(tmp_path: Path) -> None:
    """One that is away is named; a model's own endpoint is asked for that model only."""
    async with tier(tmp_path / "tier") as url, tier(tmp_path / "tier2") as own:
        models = {"small": ModelSettings(cloud_model="big"), "odd": ModelSettings(cloud_url=own)}
        fits = device(tmp_path, url, models=models)
        assert await found(fits, tmp_path) == f"{url}: small is big 1.0.0 there; {own}: odd is odd 1.0.0 there"
        away = device(tmp_path, "", cloud_url=(url, "http://127.0.0.1:1"), models={"small": models["small"]})
        with pytest.raises(UnavailableError, match=r"^http://127.0.0.1:1: .* cannot be reached") as caught:
            await found(away, tmp_path)
        assert not isinstance(caught.value, CloudError)  # the start of the agent does not wait for it
    with pytest.raises(CloudError, match="cannot be reached"):
        await found(away, tmp_path)


@given(st.lists(st.integers(0, 4), max_size=400))
def test_retries_are_at_most_a_tenth_of_the_calls_and_a_few(wishes: list[int]) -> None:
    """Whatever is asked for: in every run of n calls at most n / 10 + MOST_SAVED retries."""
    budget, made = RetryBudget(), [0]
    for wish in wishes:
        budget.called()
        made.append(made[-1] + sum(budget.take() for _ in range(wish)))
    for start in range(0, len(made), 7):
        for end in range(start, len(made), 13):
            assert made[end] - made[start] <= (end - start) / CALLS_FOR_ONE_RETRY + MOST_SAVED
    assert budget.made == made[-1] <= len(wishes) / CALLS_FOR_ONE_RETRY + 1


def test_a_budget_gives_one_retry_for_ten_calls() -> None:
    """It could not fail above if no retry was ever allowed."""
    budget = RetryBudget()
    assert [budget.take(), budget.take()] == [True, False]
    taken = []
    for _ in range(30):
        budget.called()
        taken.append(budget.take())
    assert sum(taken) == 3


async def test_a_forgotten_connection_is_tried_again_within_the_budget_only() -> None:
    """The server closes each connection after one answer, without saying so."""
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server, budget = await asyncio.start_server(handle, "127.0.0.1", 0), RetryBudget()
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = HttpClient(url, may_retry=budget.take)
        for _ in range(2):
            assert (await client.request("GET", "/", headers={}, timeout_seconds=5)).status == 200
        with pytest.raises(NoAnswerError):
            await client.request("GET", "/", headers={}, timeout_seconds=5)
        client.close()
    assert (served, budget.made) == (2, 1)


def test_a_try_gets_the_time_that_answers_usually_take() -> None:
    """The longest before the first answer; then mean and spread, doubled by each time-out until an answer comes."""
    times = AnswerTimes()
    assert times.try_seconds(2.0) == 2.0
    for _ in range(50):
        times = times.answered(0.4)
    assert times.try_seconds(9.0) == pytest.approx(0.8, abs=0.01)
    late = times.timed_out().timed_out()
    assert late.try_seconds(9.0) == pytest.approx(3.2, abs=0.04)
    assert late.try_seconds(2.0) == 2.0
    assert late.answered(0.4).try_seconds(9.0) == pytest.approx(0.8, abs=0.01)
    assert AnswerTimes().answered(0.001).try_seconds(9.0) == SHORTEST_TRY_SECONDS
    for _ in range(10_000):
        late = late.timed_out()
    assert np.isfinite(late.try_seconds(1e9))


async def test_a_tier_that_hangs_keeps_a_local_answer_for_its_usual_time_only(tmp_path: Path) -> None:
    """A request that has no local answer waits as long as the settings say."""
    cloud, clock = MemoryCloud(CLOUD_OUTPUTS), HeldClock()
    async with InferenceService(cloud=cloud, clock=clock) as service:
        await service.activate("small", onnx_bundle(tmp_path), tmp_path)
        cloud.gate.clear()
        for first in (True, False):
            task = asyncio.ensure_future(service.infer("small", {"x": UNSURE}, route="auto" if first else "cloud-only"))
            await cloud.arrivals.acquire()
            clock.now += 0.01
            cloud.gate.set()
            await task
            cloud.gate.clear()
        await service.infer("small", {"x": UNSURE})
        assert [round(one[2], 3) for one in cloud.asked] == [2.0, 2.0, SHORTEST_TRY_SECONDS]
        assert (await service.infer("small", {"x": SURE})).parameters["edgekit_route"] == "local"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('["http://a", "htp://b"]', r"cloud_url is 'htp://b', expected http://HOST"),
        ('["http://a", ""]', r"cloud_url is ''"),
        ('["http://a", "http://a"]', "cloud_url names the same URL twice"),
        ('"http://a..b"', r"cloud_url is 'http://a..b', expected http://HOST"),  # no resolver takes such a name
        ("[" + ", ".join(f'"http://a{n}"' for n in range(9)) + "]", "length <= 8"),
        ("[1]", "cloud_url"),
    ],
)
def test_each_url_of_a_list_is_checked(tmp_path: Path, value: str, says: str) -> None:
    """For the agent and for one model."""
    for text in (f"cloud_url = {value}", f"[models.m]\ncloud_url = {value}"):
        with pytest.raises(SettingsError, match=says):
            read(tmp_path, text)


def test_lists_and_single_urls_are_read(tmp_path: Path) -> None:
    """A single URL stays what it was; a model's own list, or none, wins."""
    assert read(tmp_path, 'cloud_url = "http://a"').cloud_urls_of("m") == ("http://a",)
    text = 'cloud_url = ["https://a", "http://b"]\ncloud_ca = "ca.pem"\n'
    text += '[models.m]\ncloud_url = ["https://b"]\n[models.n]\ncloud_url = ""\n[models.o]\n'
    settings = read(tmp_path, text)
    assert [settings.cloud_urls_of(one) for one in "mno"] == [("https://b",), (), ("https://a", "http://b")]
    assert settings.all_cloud_urls() == ("https://a", "http://b", "https://b")

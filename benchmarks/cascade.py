"""A digits cascade on replayed traces: a certified threshold beside fixed ones, a constant with audits, and the oracle.

A device's inference service and a cloud tier in a process of its own answer the certified replays over loopback, in
requests of several rows, of which only the unsure ones travel; the other policies take the same answers of both models.
Replays are long, so that their accuracy shows what the threshold does and not the luck of the draw. A short trace of
one request a sample gives the p99 of each policy. The certificate is made by `edgekit calibrate`'s own code from draws
that no replay sees. Then the samples shift (a slant as of other writers, more noise), and the field test must refute
the certificate; without a shift it must not.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cascade_models import CLOUD, EDGE, Population, make_bundles
from benchmarks.cloud_tier import running_tier
from benchmarks.results import Figure, publish
from converters.cascade.bundles import bundle_tier, certify_bundle
from converters.cascade.calibrate import Calibration, Promise
from device_agents.inference.cloud_client import CloudClient
from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.runtimes import open_runtime
from edgekit.serving.models.options import ModelSettings
from edgekit.tensors import Array

TARGET, CONFIDENCE = 0.91, 0.95
LABELLED, UNLABELLED = 3000, 12_000
REPLAYS, SAMPLES, ROWS, SHORT = 4, 40_000, 20, 300
AUDIT_RATE, CONSTANT = 0.01, 0.8
RUNS, MOST_EXPLORED, DRAWS, DRAWN = 3, 2500, 50, 500
TRUTH, DEFAULT_EXPLORATION = 50_000, 0.0075
OTHERS = {
    **{f"fixed {value}": (value, 0.0) for value in (0.5, 0.8, 0.9)},
    f"constant {CONSTANT} with {AUDIT_RATE:.0%} audits": (CONSTANT, AUDIT_RATE),
}
SHIFTS = {"a slant as of other writers": {"slant": 0.25}, "noise of 0.3 for 0.2": {"noise": 0.3}}


class Replay(NamedTuple):
    """One replayed trace under one policy."""

    accuracy: float
    sent: float
    p99_ms: float


async def certified_replay(bundle: Path, url: str, x: Array, y: Array) -> tuple[float, float]:
    """Accuracy and share sent of the certificate's threshold, in requests of ROWS samples."""
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    client, right, sent = CloudClient(url), 0, 0
    own, options = {EDGE: ModelSettings(cloud_model=CLOUD)}, ServiceOptions(exploration_share=0.0)
    async with InferenceService(cloud=client, models=own, service=options) as service:
        await service.activate(EDGE, manifest, bundle)
        for at in range(0, len(x), ROWS):
            answer = await service.infer(EDGE, {"x": x[at : at + ROWS]})
            right += int(np.sum(answer.outputs["scores"].argmax(1) == y[at : at + ROWS]))
            is_sent = answer.parameters["edgekit_route"] == "cloud"
            sent += int(answer.parameters.get("edgekit_cloud_rows", ROWS)) * is_sent
    client.close()
    return right / len(x), sent / len(x)


async def p99_ms(bundle: Path, url: str, x: Array, threshold: float | None, audited: Array) -> float:
    """p99, one request a sample; `audited` (N,) go to the cloud, a threshold of None takes the certificate's."""
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    own = {EDGE: ModelSettings(cloud_model=CLOUD, fallback_threshold=threshold)}
    client, spent, options = CloudClient(url), list[float](), ServiceOptions(exploration_share=0.0)
    async with InferenceService(cloud=client, models=own, service=options) as service:
        await service.activate(EDGE, manifest, bundle)
        for at in range(len(x)):
            begun = time.monotonic()
            await service.infer(EDGE, {"x": x[at : at + 1]}, route="cloud-only" if audited[at] else "auto")
            spent.append(time.monotonic() - begun)
    client.close()
    return 1000 * float(np.quantile(spent, 0.99))


async def refuted_after(bundle: Path, url: str, population: Population, shift: dict[str, float], seed: int) -> int:
    """Explored answers until the field test refutes the certificate; 0 where MOST_EXPLORED do not.

    Every confident answer may be explored, so that a run is short: the test depends on explored answers only.
    """
    manifest, news = parse_manifest((bundle / MANIFEST_NAME).read_bytes()), list[int]()
    rng, client, own = np.random.default_rng(seed), CloudClient(url), {EDGE: ModelSettings(cloud_model=CLOUD)}
    options = ServiceOptions(exploration_share=1.0, explorations_per_day=MOST_EXPLORED)
    async with InferenceService(cloud=client, models=own, service=options) as service:
        service.listen_certificates(lambda kind, model, message, detail: news.append(detail.get("explored", 0)))
        await service.activate(EDGE, manifest, bundle)
        for _ in range(DRAWS):
            for row in population.draw(DRAWN, rng, **shift)[0]:
                await service.infer(EDGE, {"x": row[None]})
                if news:
                    break
            if news or service.counters()[EDGE]["explored"] >= MOST_EXPLORED:
                break
    client.close()
    return news[0] if news else 0


def answers(bundle: Path, x: Array) -> Array:
    """The scores (N, 10) of a bundle."""
    runtime = open_runtime(parse_manifest((bundle / MANIFEST_NAME).read_bytes()), bundle)
    found = runtime.run({"x": x})["scores"]
    runtime.close()
    return found


def oracle_share(edge: Array, cloud: Array, y: Array) -> float:
    """The smallest share sent with which a threshold of the edge's largest probability reaches the target."""
    order = np.argsort(edge.max(1))
    gains = ((cloud.argmax(1) == y).astype(int) - (edge.argmax(1) == y))[order]
    right = (edge.argmax(1) == y).sum() + np.concatenate([[0], np.cumsum(gains)])
    enough = np.flatnonzero(right >= TARGET * len(y))
    return float(enough[0] / len(y)) if len(enough) else 1.0


def certify(folder: Path, edge: Path, cloud: Path, population: Population) -> tuple[Path, Calibration]:
    """Certify the pair on draws of its own."""
    rng = np.random.default_rng(100)
    x, y = population.draw(LABELLED, rng)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "more.npz", x=population.draw(UNLABELLED, rng)[0])
    promise = Promise("accuracy", TARGET, CONFIDENCE)
    with bundle_tier(cloud) as tier:
        return certify_bundle(edge, tier, promise, folder / "data.npz", folder / "more.npz", "", folder / "certified")


async def measure(folder: Path) -> list[Figure]:
    """Train, certify, replay, shift."""
    population = Population()
    edge, cloud = make_bundles(folder, population)
    bundle, calibration = certify(folder, edge, cloud, population)
    x, y = population.draw(TRUTH, np.random.default_rng(7))
    both = answers(edge, x), answers(cloud, x)
    figures = [
        Figure("accuracy of the edge model", float(np.mean(both[0].argmax(1) == y)), "share"),
        Figure("accuracy of the cloud model", float(np.mean(both[1].argmax(1) == y)), "share"),
        Figure("share sent by the oracle", oracle_share(*both, y), "share", note=f"accuracy {TARGET}, {TRUTH} samples"),
        Figure("certified bound of the share sent", calibration.certificate.sent.upper, "share"),
    ]
    policies: dict[str, list[Replay]] = {}
    with running_tier(cloud, CLOUD) as url:
        for number in range(REPLAYS):
            rng = np.random.default_rng(1000 + number)
            x, y = population.draw(SAMPLES, rng)
            p99 = await p99_ms(bundle, url, x[:SHORT], None, np.zeros(SHORT, bool))
            policies.setdefault("certified", []).append(Replay(*await certified_replay(bundle, url, x, y), p99))
            both = answers(edge, x), answers(cloud, x)
            for name, (threshold, audit) in OTHERS.items():
                audited = rng.random(SAMPLES) < audit
                p99 = await p99_ms(edge, url, x[:SHORT], threshold, audited)
                sent = (both[0].max(1) < threshold) | audited
                accuracy = float(np.mean(np.where(sent, both[1].argmax(1), both[0].argmax(1)) == y))
                policies.setdefault(name, []).append(Replay(accuracy, float(sent.mean()), p99))
        figures += _policy_figures(policies)
        for name, shift in {"no shift": {}, **SHIFTS}.items():
            after = [await refuted_after(bundle, url, population, shift, 50 + seed) for seed in range(RUNS)]
            figures += _refutation(name, after, 1 - calibration.certificate.sent.value)
    return figures


def _policy_figures(policies: dict[str, list[Replay]]) -> list[Figure]:
    means = {
        name: Replay(*(statistics.fmean(getattr(one, key) for one in found) for key in Replay._fields))
        for name, found in policies.items()
    }
    met = {name: sum(one.accuracy >= TARGET for one in found) for name, found in policies.items()}

    def figure(text: str, unit: str, key: str, reach: float | None = None) -> Figure:
        peers = {name: getattr(means[name], key) for name in OTHERS}
        size = f"{SHORT} requests" if key == "p99_ms" else f"{SAMPLES} samples"
        note = f"mean of {REPLAYS} replays of {size}"
        return Figure(text, getattr(means["certified"], key), unit, reach, at_most=False, peers=peers, note=note)

    peers: dict[str, float] = {name: met[name] for name in OTHERS}
    text = f"replays with an accuracy of at least {TARGET}"
    return [
        Figure(text, met["certified"], "replays", REPLAYS, at_most=False, peers=peers),
        figure("accuracy", "share", "accuracy", TARGET),
        figure("share sent", "share", "sent"),
        figure("p99 of an answer", "ms", "p99_ms"),
    ]


def _refutation(name: str, after: list[int], kept: float) -> list[Figure]:
    """Runs that refuted the certificate, and after how many answers, the middle of the runs."""
    refuted = sum(one > 0 for one in after)
    text, note = (
        f"{name}: runs that refuted the certificate",
        f"{RUNS} runs of at most {MOST_EXPLORED} explored answers",
    )
    if name == "no shift":
        return [Figure(text, refuted, "runs", 0, note=note)]
    middle = float(sorted(one or MOST_EXPLORED for one in after)[len(after) // 2])
    requests = middle / DEFAULT_EXPLORATION / kept
    note = f"{requests:.0f} requests at the default exploration of {DEFAULT_EXPLORATION:.2%}"
    return [
        Figure(text, refuted, "runs", RUNS, at_most=False, note=note),
        Figure(f"{name}: explored answers until then", middle, "answers", note=note),
    ]


def main() -> None:
    """Measure and publish."""
    logging.disable(logging.WARNING)  # a refuted certificate is a figure here
    with tempfile.TemporaryDirectory() as work:
        publish("cascade", asyncio.run(measure(Path(work))))


if __name__ == "__main__":
    main()

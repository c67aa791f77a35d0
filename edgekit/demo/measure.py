"""Asking a device's local endpoint as an application would: one row a request, over Open Inference Protocol v2."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import urllib3

from edgekit.errors import CloudError, EdgekitError
from edgekit.tensors import Array

REQUEST_SECONDS = 30.0


class Answer(msgspec.Struct, frozen=True):
    """One answer: the class, where it came from, and how long it took.

    Attributes:
        label: Index of the largest score.
        route: ``local``, ``cloud`` or ``degraded``.
        version, digest: Of the device's bundle.
        seconds: As the client saw it.
    """

    label: int
    route: str
    version: str
    digest: str
    seconds: float


class Endpoint:
    """A device's endpoint for one model.

    Args:
        url: For example ``http://127.0.0.1:8600``.
        model: Its name there.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v2/models/{model}"
        self._pool = urllib3.PoolManager(retries=False, timeout=REQUEST_SECONDS)
        self._input, self._output = self._names()

    def ask(self, row: Array, *, route: str = "auto") -> Answer:
        """Send one row (shape without batch, float32).

        Raises:
            CloudError: the device did not answer 200.
        """
        tensor = np.ascontiguousarray(row[None])
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": self._input,
                        "shape": list(tensor.shape),
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": tensor.nbytes},
                    }
                ],
                "parameters": {"edgekit_route": route},
            }
        ).encode()
        start = time.perf_counter()
        answer = self._pool.request(
            "POST",
            f"{self._url}/infer",
            body=header + tensor.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
        )
        seconds = time.perf_counter() - start
        if answer.status != 200:
            raise CloudError(f"{self._url} answered {answer.status}: {answer.data[:200]!r}")
        body = json.loads(answer.data)
        said = body["parameters"]
        scores = next(output["data"] for output in body["outputs"] if output["name"] == self._output)
        return Answer(
            label=int(np.argmax(scores)),
            route=said["edgekit_route"],
            version=said["edgekit_version"],
            digest=said["edgekit_model"],
            seconds=seconds,
        )

    def _names(self) -> tuple[str, str]:
        answer = self._pool.request("GET", self._url)
        if answer.status != 200:
            raise CloudError(f"{self._url} answered {answer.status}: {answer.data[:200]!r}")
        body = json.loads(answer.data)
        return body["inputs"][0]["name"], body["outputs"][0]["name"]


class Figures(msgspec.Struct, frozen=True):
    """What was measured of one device over labelled rows.

    Attributes:
        version, digest: Of the bundle that answered.
        local_accuracy, fallback_accuracy: Share of right answers, local only and with the cloud tier's help.
        unsure: Rows of the second pass whose answers came from the cloud tier, rising.
        p50_ms, p95_ms: Latency of the second pass.
        n: Rows.
    """

    version: str
    digest: str
    local_accuracy: float
    fallback_accuracy: float
    unsure: tuple[int, ...]
    p50_ms: float
    p95_ms: float
    n: int

    @property
    def cloud_share(self) -> float:
        """Share of the answers of the second pass that came from the cloud tier."""
        return len(self.unsure) / self.n


def measure(endpoint: Endpoint, x: Array, y: Array) -> Figures:
    """Ask for every row twice, local only and with fallback.

    Args:
        x: (N, ...) float32.
        y: (N,) class indices.

    Raises:
        EdgekitError: a local-only answer came from elsewhere, or two bundles answered.
    """
    local = [endpoint.ask(row, route="local-only") for row in x]
    auto = [endpoint.ask(row) for row in x]
    if any(answer.route != "local" for answer in local):
        raise EdgekitError("an answer to a local-only request did not come from the device")
    bundles = {(answer.version, answer.digest) for answer in (*local, *auto)}
    if len(bundles) != 1:
        raise EdgekitError(f"answers came from several bundles: {sorted(bundles)}")
    version, digest = bundles.pop()
    p50, p95 = np.percentile([answer.seconds * 1000 for answer in auto], [50, 95])
    return Figures(
        version=version,
        digest=digest,
        local_accuracy=_accuracy(local, y),
        fallback_accuracy=_accuracy(auto, y),
        unsure=tuple(index for index, answer in enumerate(auto) if answer.route == "cloud"),
        p50_ms=float(p50),
        p95_ms=float(p95),
        n=len(x),
    )


def stream(endpoint: Endpoint, x: Array, *, at: int, action: Callable[[], None]) -> tuple[Counter[str], Counter[str]]:
    """Ask for every row once and do `action` before row `at`.

    Returns:
        Answers by route before the action, and after it.
    """
    before = Counter(endpoint.ask(row).route for row in x[:at])
    action()
    return before, Counter(endpoint.ask(row).route for row in x[at:])


def load_rows(path: Path) -> tuple[Array, Array]:
    """``x`` (N, ...) and ``y`` (N,) of an .npz file."""
    with np.load(path, allow_pickle=False) as archive:
        return archive["x"], archive["y"]


def _accuracy(answers: list[Answer], y: Array) -> float:
    return float(np.mean([answer.label == label for answer, label in zip(answers, y, strict=True)]))

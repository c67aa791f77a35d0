"""Client of a device's local endpoint: one row per request, over the Open Inference Protocol v2."""

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
    """One answer with its route and duration.

    Attributes:
        label: Class index of the largest score.
        route: ``local``, ``cloud`` or ``degraded``.
        version, digest: Version and digest of the bundle that answered; empty where a cloud tier does not say.
        seconds: Duration of the request, measured by the client.
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
        model: Name of the model.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v2/models/{model}"
        self._pool = urllib3.PoolManager(retries=False, timeout=REQUEST_SECONDS)
        self._input, self._output = self._names()

    def ask(self, row: Array, *, route: str = "auto") -> Answer:
        """Send one row (float32, shape without batch).

        Raises:
            CloudError: the status of the answer is not 200.
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
        parameters = body["parameters"]
        scores = next(output["data"] for output in body["outputs"] if output["name"] == self._output)
        return Answer(
            label=int(np.argmax(scores)),
            route=parameters["edgekit_route"],
            version=parameters.get("edgekit_version", ""),
            digest=parameters.get("edgekit_model", ""),
            seconds=seconds,
        )

    def _names(self) -> tuple[str, str]:
        answer = self._pool.request("GET", self._url)
        if answer.status != 200:
            raise CloudError(f"{self._url} answered {answer.status}: {answer.data[:200]!r}")
        body = json.loads(answer.data)
        return body["inputs"][0]["name"], body["outputs"][0]["name"]


class Figures(msgspec.Struct, frozen=True):
    """Accuracy and latency of one device on labelled rows.

    The first pass is local only; the second pass has the fallback to the cloud tier.

    Attributes:
        version, digest: Version and digest of the device's bundle.
        local_accuracy, fallback_accuracy: Share of right answers in the first and in the second pass.
        unsure: Indexes of the rows that the cloud tier answered in the second pass, ascending.
        p50_ms, p95_ms: Latency of the second pass, in milliseconds.
        n: Number of rows.
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
        """Share of rows that the cloud tier answered in the second pass."""
        return len(self.unsure) / self.n


def measure(endpoint: Endpoint, x: Array, y: Array) -> Figures:
    """Send every row twice, first local only and then with fallback.

    Args:
        x: (N, ...) float32.
        y: (N,) class indices.

    Raises:
        EdgekitError: a local-only answer has another route, or more than one bundle answered.
    """
    local = [endpoint.ask(row, route="local-only") for row in x]
    auto = [endpoint.ask(row) for row in x]
    if any(answer.route != "local" for answer in local):
        raise EdgekitError("an answer to a local-only request did not come from the device")
    bundles = {(answer.version, answer.digest) for answer in (*local, *auto) if answer.route != "cloud"}
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
    """Send every row once, and call `action` before row `at`.

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

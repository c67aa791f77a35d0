"""Send requests to a device's inference service, which falls back to the cloud tier when its score is low.

Prints route, reason and score of three answers: a sure one, an unsure one, and an unsure one without the cloud tier.
"""

import asyncio
import tempfile
from pathlib import Path

import numpy as np
import onnx.parser

from device_agents import InferenceService, ServiceOptions
from device_agents.inference.cloud_client import CloudClient
from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Golden, Manifest, Task, Tolerance, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.tensors import DType, TensorSpec

SURE, UNSURE = np.array([[4, 0, 0]], np.float32), np.array([[0.5, 0, 0.1]], np.float32)
TEXT = """<ir_version: 9, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,3] scores) <float gain = {%s}>
{ h = Mul(x, gain) scores = Softmax<axis=-1>(h) }"""


def bundle(folder: Path, gain: float) -> tuple[Manifest, Path]:
    """Write a bundle like `edgekit convert` does: a softmax. A larger gain gives higher scores."""
    folder.mkdir()
    scores = np.exp(gain * SURE) / np.exp(gain * SURE).sum()
    files = {"model.onnx": ("model", onnx.parser.parse_model(TEXT % gain).SerializeToString())}
    files["golden.npz"] = ("golden", write_golden({"x": SURE}, {"scores": scores}))
    for path, (_, data) in files.items():
        (folder / path).write_bytes(data)
    x, y = (Binding(spec, spec) for spec in (TensorSpec(n, DType.FLOAT32, (None, 3)) for n in ("x", "scores")))
    entries = tuple(file_entry(path, role, data) for path, (role, data) in files.items())
    golden = Golden(1, (Tolerance("scores", "onnxruntime", 1e-5),), decisions_match=True)
    task = Task("classification", "scores", "probabilities")
    return Manifest("m", "1.0.0", "server", "onnxruntime", entries, (x,), (y,), golden, Recipe(), task), folder


async def main(home: Path) -> None:
    async def ask(x: np.ndarray) -> None:
        answer = (await service.infer("m", {"x": x})).parameters
        print(f"{answer['edgekit_route']:9} {answer['edgekit_reason']:13} score {answer['edgekit_score']:.2f}")

    models = await CloudModels.open(["m"], lambda name: bundle(home / "large", 9.0), threads=1)
    async with serve(App(models, max_request_bytes=2**20), http="127.0.0.1:0") as cloud_tier:
        service = InferenceService(cloud=CloudClient(cloud_tier.url), service=ServiceOptions(fallback_threshold=0.8))
        await service.activate("m", *bundle(home / "small", 1.0))
        await ask(SURE)
        await ask(UNSURE)
    await ask(UNSURE)  # the cloud tier has stopped
    await service.close()


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))

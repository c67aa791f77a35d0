"""Use the inference service inside an application: no HTTP, but the same queue, deadlines and version switches.

Prints how many of ten simultaneous requests a queue of four refuses, the error of a missed deadline, and which versions
answered during a switch.
"""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx.parser

from device_agents import InferenceService
from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Golden, Manifest, Tolerance, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.session import OverloadedError
from edgekit.tensors import DType, TensorSpec

SMALL, LARGE = np.ones((1, 3), np.float32), np.ones((500_000, 3), np.float32)
TEXT = """<ir_version: 9, opset_import: ["" : 17]> g (float[n,3] x) => (float[n,3] y) <float gain = {%s}>
{ h = Mul(x, gain) y = Softmax<axis=-1>(h) }"""


def bundle(folder: Path, version: str, gain: float) -> tuple[Manifest, Path]:
    """Write a bundle like `edgekit convert` does."""
    folder.mkdir()
    files = {"model.onnx": ("model", onnx.parser.parse_model(TEXT % gain).SerializeToString())}
    files["golden.npz"] = ("golden", write_golden({"x": SMALL}, {"y": np.full((1, 3), 1 / 3, np.float32)}))
    entries = tuple(file_entry(path, role, data) for path, (role, data) in files.items())
    for path, (_, data) in files.items():
        (folder / path).write_bytes(data)
    x, y = (Binding(spec, spec) for spec in (TensorSpec(n, DType.FLOAT32, (None, 3)) for n in "xy"))
    golden = Golden(1, (Tolerance("y", "onnxruntime", 1e-5),), decisions_match=False)
    return Manifest("m", version, "server", "onnxruntime", entries, (x,), (y,), golden, Recipe()), folder


async def main(home: Path) -> None:
    async with InferenceService(options=ModelOptions(queue_limit=4)) as service:
        await service.activate("m", *bundle(home / "1", "1.0.0", 1.0))
        results = await asyncio.gather(*(service.infer("m", {"x": LARGE}) for _ in range(10)), return_exceptions=True)
        print(sum(isinstance(one, OverloadedError) for one in results), "of 10 refused at once:", results[-1].advice)
        requests = service.infer("m", {"x": LARGE}), service.infer("m", {"x": LARGE}, deadline_ms=1)
        print("too late:", (await asyncio.gather(*requests, return_exceptions=True))[1])
        switch = asyncio.ensure_future(service.activate("m", *bundle(home / "2", "2.0.0", 2.0)))
        versions: Counter[str] = Counter()
        while not versions["2.0.0"]:
            versions[(await service.infer("m", {"x": SMALL})).version] += 1
            await asyncio.sleep(0)
        await switch
        print("while the version changed:", ", ".join(f"{n} answers of {v}" for v, n in sorted(versions.items())))


with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(Path(folder)))

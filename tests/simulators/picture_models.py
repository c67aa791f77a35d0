"""Two models of the strongest colour of a picture: 32 by 32 on the device, 64 by 64 in the cloud tier, and pictures.

Both take the bytes of an image as ``photo`` and have logits (N, 3). The pictures are so noisy that the small model,
which sees a quarter of the pixels, is often unsure and sometimes wrong.
"""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgekit.bundle.bindings import Binding
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, Task, parse_manifest
from edgekit.preprocess import Processing
from edgekit.tensors import DType, TensorSpec
from tests.simulators.small_models import write_files

COLOURS = ("red", "green", "blue")
SIDE, DEVICE_SIDE = 64, 32
GAIN = 60.0
_STEPS = """
[[before]]
raw = "photo"
steps = [
  {{do = "decode-image", max_pixels = 1000000}},
  {{do = "resize", height = {side}, width = {side}, method = "nearest"}},
  {{do = "scale", by = 0.00392156862745098}},
]
[[after]]
do = "top-k"
k = 1
of = "scores"
labels = ["red", "green", "blue"]
"""


def pictures(n: int, *, seed: int) -> tuple[list[bytes], np.ndarray]:
    """PNG files of noise, and the strongest colour (N,) of each before the noise."""
    rng = np.random.default_rng(seed)
    colours = 128 + rng.normal(0, 4, (n, 1, 1, 3))
    pixels = np.clip(colours + rng.normal(0, 60, (n, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    return [_png(one) for one in pixels], colours[:, 0, 0].argmax(axis=1)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def edge_bundle(folder: Path, *, name: str = "colours") -> Manifest:
    """Write the bundle of the device."""
    return _bundle(folder, name, "x86-64", DEVICE_SIDE)


def cloud_bundle(folder: Path, *, name: str = "colours-large", steps: bool = True) -> Manifest:
    """Write the bundle of the cloud tier; without `steps` it takes tensors only."""
    return _bundle(folder, name, "server", SIDE, steps=steps)


def _bundle(folder: Path, name: str, target: str, side: int, *, steps: bool = True) -> Manifest:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["means", "gain"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", side, side, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(GAIN), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    x = np.random.default_rng(1).random((3, side, side, 3), np.float32)
    inputs = TensorSpec("x", DType.FLOAT32, (None, *x.shape[1:]))
    outputs = TensorSpec("scores", DType.FLOAT32, (None, 3))
    manifest = write_files(
        folder,
        model=("model.onnx", bytes(model.SerializeToString())),
        golden=write_golden({"x": x}, {"scores": GAIN * x.mean(axis=(1, 2))}),
        identity={"name": name, "version": "1.0.0", "target": target, "runtime": "onnxruntime"},
        inputs=(Binding(inputs, inputs),),
        outputs=(Binding(outputs, outputs),),
        max_abs=1e-3,
        task=Task("classification", "scores", "logits"),
    )
    if steps:
        processing = msgspec.toml.decode(_STEPS.format(side=side), type=Processing)
        manifest = msgspec.structs.replace(manifest, processing=processing)
        (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return parse_manifest(manifest.canonical_bytes())

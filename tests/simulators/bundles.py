"""Bundles with plain bytes as artifacts, for tests that sign, store and transfer bundles but never run them."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import MANIFEST_NAME, Golden, Manifest, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.tensors import DType, TensorSpec


def manifest_of(
    name: str = "digits", version: str = "1.0.0", target: str = "pi", model: bytes = b"model" * 30_000
) -> Manifest:
    """A manifest. The default model has three blocks."""
    binding = Binding(TensorSpec("x", DType.FLOAT32, (None, 3)), TensorSpec("x", DType.FLOAT32, (1, 3)))
    files = (file_entry("model.onnx", "model", model), file_entry("golden.npz", "golden", b"golden"))
    return Manifest(name, version, target, "onnxruntime", files, (binding,), (binding,), Golden(1, (), False), Recipe())


def write_bundle(
    folder: Path, name: str = "digits", version: str = "1.0.0", target: str = "pi", model: bytes = b"model" * 30_000
) -> Path:
    """Write a bundle into a new folder in `folder`, with the name that `edgekit convert` gives it."""
    bundle = folder / f"{name}-{version}-{target}"
    bundle.mkdir(parents=True)
    (bundle / "model.onnx").write_bytes(model)
    (bundle / "golden.npz").write_bytes(b"golden")
    (bundle / MANIFEST_NAME).write_bytes(manifest_of(name, version, target, model).canonical_bytes())
    return bundle

"""Damaged and nudged copies of bundles, for every kind of artifact that a conversion can choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from converters import convert
from converters.graph.graph import Graph
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import BLOCK_BYTES, Manifest
from edgekit.bundle.recipe import Recipe
from edgekit.deltas.making import apply_delta, make_delta
from edgekit.demo.damage import damaged_bundle, flip_blocks, nudged_bundle
from edgekit.errors import EdgekitError
from edgekit.registry import check_bundle
from edgekit.runtimes import open_runtime
from tests.simulators.models import labelled_data, model_of, patterns, saved

LONG_SECONDS = 40  # of the whole file: it starts early, see tests/conftest.py

PI, JETSON, PC = "raspberry-pi-4", "jetson-orin", "x86-64"
KINDS = {
    "float32": Recipe(),
    "float16": Recipe(precision="float16"),
    "int8": Recipe(precision="int8"),
    "int8-dynamic": Recipe(precision="int8-dynamic"),
    "int8-weights": Recipe(precision="int8-weights"),
    "int4": Recipe(precision="int8-dynamic", int4_layers=("hidden", "wide")),
}
QUICK = {"float32", "int8", "int4"}  # each conversion for LiteRT starts TensorFlow, which takes most of the time
BUNDLES = [
    *(pytest.param(PI, kind, marks=[] if kind in QUICK else pytest.mark.soak) for kind in KINDS),
    *((JETSON, kind) for kind in ("float32", "float16")),
    *((PC, kind) for kind in ("int8", "int8-dynamic")),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a classifier of 86 thousand weights (only the last layer is fitted) and its data."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(0, 0.2, (64, 256)).astype(np.float32),
        "b": rng.normal(0, 0.1, (256, 256)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "a"], ["g"], name="wide"),
        helper.make_node("Relu", ["g"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "b"], ["h"], name="hidden"),
        helper.make_node("Relu", ["h"], ["s"], name="relu2"),
    ]
    images, labels = patterns(400)
    features = Graph(model_of(nodes, {"image": ["batch", 1, 8, 8]}, {"s": ["batch", 256]}, weights))
    known = features.run({"image": images})["s"]
    fitted = known.T @ np.linalg.solve(known @ known.T + 10 * np.eye(len(known)), 10.0 * np.eye(3)[labels])
    weights["c"] = fitted.astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["s", "c"], ["logits"], name="dense"))
    nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1, name="softmax"))
    saved(model_of(nodes, {"image": ["batch", 1, 8, 8]}, {"scores": ["batch", 3]}, weights), folder / "model.onnx")
    labelled_data(folder / "data.npz")
    return folder


def made(source: Path, target: str, kind: str) -> Path:
    """The bundle of one kind; converted at the first call only."""
    folder = source / kind
    bundle = folder / f"m-1.0.0-{target}"
    if not bundle.exists():
        choices = {"data": source / "data.npz", "name": "m", "version": "1.0.0", "max_drop": 1.0}
        if target == PC:
            choices["runtime"] = "onnxruntime"
        convert(source / "model.onnx", targets=[target], recipe=KINDS[kind], output=folder, **choices)
    return bundle


def passes(bundle: Path, manifest: Manifest) -> bool:
    runtime = open_runtime(manifest, bundle)
    try:
        return self_test(runtime, manifest, (bundle / manifest.file("golden").path).read_bytes()).passed
    finally:
        runtime.close()


@pytest.mark.heavy
@pytest.mark.parametrize(("target", "kind"), BUNDLES)
def test_damage_is_found_in_an_artifact_of_every_kind(source: Path, tmp_path: Path, target: str, kind: str) -> None:
    """The copy has correct digests and loads; only its self-test finds the wrong answers."""
    bundle = made(source, target, kind)
    damaged_bundle(bundle, tmp_path / "damaged", version="1.1.0")
    manifest = check_bundle(tmp_path / "damaged")
    assert manifest.version == "1.1.0"
    assert passes(bundle, check_bundle(bundle))
    assert not passes(tmp_path / "damaged", manifest)


@pytest.mark.heavy
def test_a_nudged_bundle_passes_its_self_test_and_has_a_small_delta(source: Path, tmp_path: Path) -> None:
    """The delta has less than 1,000 bytes, and each version changes other weights."""
    bundle = made(source, PI, "float32")
    nudged_bundle(bundle, tmp_path / "1", version="1.3.0")
    nudged_bundle(tmp_path / "1", tmp_path / "2", version="1.4.0")
    folders = (bundle, tmp_path / "1", tmp_path / "2")
    manifests = [check_bundle(folder) for folder in folders]
    assert [manifest.version for manifest in manifests] == ["1.0.0", "1.3.0", "1.4.0"]
    assert all(passes(*pair) for pair in zip(folders, manifests, strict=True))
    models = [(folder / one.file("model").path).read_bytes() for folder, one in zip(folders, manifests, strict=True)]
    assert len(set(models)) == 3
    for base, new in ((models[0], models[1]), (models[1], models[2])):
        delta = make_delta(base, new)
        assert delta is not None
        assert len(delta[1]) < 1000
        assert apply_delta(*delta, base) == new


@pytest.mark.heavy
def test_what_is_no_longer_whole_cannot_be_nudged(source: Path, tmp_path: Path) -> None:
    """Nudging a damaged bundle is an error, because the copy fails its self-test."""
    damaged_bundle(made(source, PI, "float32"), tmp_path / "damaged", version="1.1.0")
    with pytest.raises(EdgekitError, match="cannot be nudged"):
        nudged_bundle(tmp_path / "damaged", tmp_path / "nudged", version="1.3.0")


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 2 * BLOCK_BYTES + 5])
def test_every_block_of_a_file_is_changed(tmp_path: Path, size: int) -> None:
    """One byte of each block changes, also in the short last block."""
    path = tmp_path / "blob"
    path.write_bytes(bytes(size))
    flip_blocks(path)
    changed = np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8))
    assert (changed // BLOCK_BYTES).tolist() == list(range(-(-size // BLOCK_BYTES)))

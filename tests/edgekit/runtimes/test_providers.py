"""Options of providers and names of engine folders, tested without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.errors import RuntimeLoadError
from edgekit.runtimes.gpu import KEPT_ENGINES, engine_folder, gpu_versions
from edgekit.runtimes.providers import CPU, CUDA, TENSORRT, Acceleration, engine_key, missing, options
from edgekit.tensors import DType, TensorSpec

IMAGE = TensorSpec("image", DType.FLOAT32, (None, 3, 8, 8))
VERSIONS = {"onnxruntime": "1.31.1", "tensorrt": "10.9", "driver": "13000", "device": "Orin sm_87"}


def test_what_was_asked_for_and_not_got_is_named() -> None:
    """Missing providers are in the order of the request."""
    assert missing((TENSORRT, CUDA, CPU), (CPU,)) == (TENSORRT, CUDA)
    assert missing((CPU,), (CPU,)) == ()


def test_cuda_takes_no_more_memory_than_it_needs_and_at_most_the_limit() -> None:
    """The arena grows by the requested size; without a limit, no limit is set."""
    assert "gpu_mem_limit" not in options(CUDA, Acceleration())
    found = options(CUDA, Acceleration(gpu_memory_bytes=2**30))
    assert (found["gpu_mem_limit"], found["arena_extend_strategy"]) == (str(2**30), "kSameAsRequested")
    assert options(CPU, Acceleration(gpu_memory_bytes=2**30)) == {}


def test_tensorrt_keeps_its_engines_and_knows_the_bounds_of_a_free_batch() -> None:
    """There are bounds for a free batch only, and none with other free axes."""
    found = options(TENSORRT, Acceleration(), precision="int8", engines="/state/engines/k", inputs=[IMAGE])
    assert (found["trt_int8_enable"], found["trt_fp16_enable"]) == ("1", "0")
    assert found["trt_engine_cache_enable"] == "1"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == "/state/engines/k"
    assert found["trt_profile_min_shapes"] == "image:1x3x8x8"
    assert found["trt_profile_max_shapes"] == "image:8x3x8x8"
    free = TensorSpec("text", DType.INT64, (None, None))
    assert not any("profile" in name for name in options(TENSORRT, Acceleration(), inputs=[IMAGE, free]))
    assert "trt_engine_cache_enable" not in options(TENSORRT, Acceleration(), inputs=[IMAGE])


@pytest.mark.parametrize("changed", [*VERSIONS, "model", "shape", "dtype"])
def test_an_engine_is_used_for_nothing_but_what_it_was_built_for(changed: str) -> None:
    """Another library, driver, GPU, model or shape gives another folder."""
    versions = {**VERSIONS, changed: "other"} if changed in VERSIONS else VERSIONS
    fixed, whole = TensorSpec("image", DType.FLOAT32, (1, 3, 8, 8)), TensorSpec("image", DType.INT8, IMAGE.shape)
    spec = {"shape": fixed, "dtype": whole}
    other = engine_key("b" * 64 if changed == "model" else "a" * 64, versions, [spec.get(changed, IMAGE)])
    base = engine_key("a" * 64, VERSIONS, [IMAGE])
    assert other != base == engine_key("a" * 64, dict(reversed(VERSIONS.items())), [IMAGE])


def test_engines_that_nothing_uses_do_not_fill_the_disk(tmp_path: Path) -> None:
    """The least recently used folders are removed; a folder that cannot be made is an error."""
    for n in range(KEPT_ENGINES + 3):
        folder = engine_folder(tmp_path / "engines", f"{n:02}")
        (folder / "engine").write_bytes(b"x")
        os.utime(folder, (n, n))
    engine_folder(tmp_path / "engines", "new")
    left = sorted(one.name for one in (tmp_path / "engines").iterdir())
    assert left == [*(f"{n:02}" for n in range(4, 11)), "new"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RuntimeLoadError, match="the folder for TensorRT's engines cannot be used"):
        engine_folder(tmp_path / "file", "k")


def test_versions_are_told_also_where_there_is_no_gpu() -> None:
    """Without a GPU there is at least the version of ONNX Runtime."""
    assert gpu_versions()["onnxruntime"]

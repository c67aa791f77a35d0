"""Options of ONNX Runtime's execution providers, and names of missing ones. Rules only: no access to a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.tensors import TensorSpec

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
PREFERRED = (TENSORRT, CUDA, CPU)
GPU = (TENSORRT, CUDA)
LARGEST_BATCH = 8  # of a TensorRT engine; a larger request builds another engine, which takes minutes


class Acceleration(msgspec.Struct, frozen=True, kw_only=True):
    """A device's options for ONNX Runtime's providers.

    Attributes:
        providers: Names, the preferred first; empty uses the best installed one.
        required: A missing provider is an error instead of a warning.
        gpu_memory_bytes: Largest arena of a model on the GPU; 0 for no limit.
        arena_bytes: Largest arena of a model in main memory; 0 for no limit.
        engine_cache: Folder for TensorRT's engines; empty for none, so that each start builds them again.
    """

    providers: tuple[str, ...] = ()
    required: bool = False
    gpu_memory_bytes: int = 0
    arena_bytes: int = 0
    engine_cache: str = ""


def missing(requested: Sequence[str], actual: Sequence[str]) -> tuple[str, ...]:
    """The requested providers that a session lacks; ONNX Runtime falls back to the CPU without an error."""
    return tuple(name for name in requested if name not in actual)


def options(
    name: str,
    wanted: Acceleration,
    *,
    precision: str = "float32",
    engines: str = "",
    inputs: Sequence[TensorSpec] = (),
) -> dict[str, str]:
    """The options of one provider, with ONNX Runtime's names.

    Args:
        name: Name of the provider.
        wanted: Options of the device.
        precision: Precision of the artifact's recipe; TensorRT must be allowed to use it.
        engines: Folder of this model's TensorRT engines; empty for none.
        inputs: The artifact's own inputs; TensorRT needs the bounds of a free batch.
    """
    if name == CUDA:
        # kSameAsRequested: doubling would take too much memory on a Jetson, where GPU and CPU share it.
        # HEURISTIC: the default search runs every kernel at the first request of each shape.
        chosen = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        return {**chosen, "gpu_mem_limit": str(wanted.gpu_memory_bytes)} if wanted.gpu_memory_bytes else chosen
    if name == TENSORRT:
        chosen = {"trt_fp16_enable": str(int(precision == "float16")), "trt_int8_enable": str(int(precision == "int8"))}
        if engines:
            caches = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
            chosen.update(caches, trt_engine_cache_path=engines, trt_timing_cache_path=engines)
        return {**chosen, **_profile(inputs)}
    return {}


def _profile(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Bounds of free batches for TensorRT; none if another axis is free, whose sizes are unknown before requests."""
    free = [spec for spec in inputs if None in spec.shape]
    if not free or any(None in spec.shape[1:] for spec in free):
        return {}

    def shapes(batch: int) -> str:
        return ",".join(f"{spec.name}:{'x'.join(str(batch if n is None else n) for n in spec.shape)}" for spec in free)

    return {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(1),
        "trt_profile_max_shapes": shapes(LARGEST_BATCH),
    }


def engine_key(model_sha256: str, versions: Mapping[str, str], inputs: Sequence[TensorSpec]) -> str:
    """Name of the folder of a model's engines, different for everything that an engine depends on.

    ONNX Runtime does not notice that an engine was built by another TensorRT or for another GPU.

    Args:
        model_sha256: sha256 of the artifact.
        versions: Versions of ONNX Runtime, TensorRT, CUDA and the driver, and the name of the device.
        inputs: The artifact's own inputs.
    """
    shapes = [f"{spec.name}:{spec.dtype.value}:{spec.shape_text}" for spec in inputs]
    parts = [model_sha256, *(f"{name}={versions[name]}" for name in sorted(versions)), *shapes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

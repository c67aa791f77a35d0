"""What ONNX Runtime's execution providers are asked for, and what was got. Rules only: no GPU is looked at here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from edgekit.tensors import TensorSpec

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
PREFERRED = (TENSORRT, CUDA, CPU)
GPU = (TENSORRT, CUDA)
LARGEST_BATCH = 8  # of a TensorRT engine; larger requests build another, which takes minutes


class Acceleration(msgspec.Struct, frozen=True, kw_only=True):
    """What a device wants of ONNX Runtime's providers.

    Attributes:
        providers: By name, the preferred first; empty takes the best that is installed.
        required: A provider that is not got is an error, not a warning.
        gpu_memory_bytes: Most that a model's arena on the GPU may hold; 0 for no limit.
        arena_bytes: Most that a model's arena in the CPU's memory may hold; 0 for no limit.
        engine_cache: Folder where TensorRT's engines are kept; empty for none, and each start builds them again.
    """

    providers: tuple[str, ...] = ()
    required: bool = False
    gpu_memory_bytes: int = 0
    arena_bytes: int = 0
    engine_cache: str = ""


def missing(asked: Sequence[str], got: Sequence[str]) -> tuple[str, ...]:
    """What was asked for and not got; ONNX Runtime says nothing of it and runs on the CPU."""
    return tuple(name for name in asked if name not in got)


def options(
    name: str,
    wanted: Acceleration,
    *,
    precision: str = "float32",
    engines: str = "",
    inputs: Sequence[TensorSpec] = (),
) -> dict[str, str]:
    """The options of one provider, as ONNX Runtime names them.

    Args:
        name: The provider.
        wanted: By the device.
        precision: Of the artifact, as its recipe names it: TensorRT must be allowed what the artifact holds.
        engines: Folder of this model's TensorRT engines; empty for none.
        inputs: The artifact's own, whose free batch TensorRT must know the bounds of.
    """
    if name == CUDA:
        # The arena grows by what is asked: doubling takes twice the memory of a Jetson that shares it with the CPU.
        # Heuristic: the exhaustive search of the default runs every kernel at the first request of each shape.
        found = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        return {**found, "gpu_mem_limit": str(wanted.gpu_memory_bytes)} if wanted.gpu_memory_bytes else found
    if name == TENSORRT:
        found = {"trt_fp16_enable": str(int(precision == "float16")), "trt_int8_enable": str(int(precision == "int8"))}
        if engines:
            caches = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
            found.update(caches, trt_engine_cache_path=engines, trt_timing_cache_path=engines)
        return {**found, **_profile(inputs)}
    return {}


def _profile(inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Bounds of free batches; none where another axis is free, which only the first requests can tell."""
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
    """Name of the folder of a model's engines: an engine fits nothing else than what it was built for.

    ONNX Runtime does not notice that TensorRT, or the GPU, is another than the one that an engine was built by.

    Args:
        model_sha256: Of the artifact.
        versions: Of ONNX Runtime, TensorRT, CUDA, the driver, and the name of the device.
        inputs: The artifact's own.
    """
    shapes = [f"{spec.name}:{spec.dtype.value}:{spec.shape_text}" for spec in inputs]
    parts = [model_sha256, *(f"{name}={versions[name]}" for name in sorted(versions)), *shapes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

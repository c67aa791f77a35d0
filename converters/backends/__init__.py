"""Backends: each makes artifacts of the canonical graph for one kind of runtime or accelerator.

Nothing here chooses a recipe or measures the quality of an artifact.
"""

from __future__ import annotations

from converters.backends.accelerators import accelerators
from converters.backends.context import ConversionContext
from converters.backends.contract import Artifact, Backend
from converters.backends.layers import Layer, four_bit_default
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.backends.onnx_tensorrt import OnnxTensorRTBackend
from edgekit.bundle.targets import TargetProfile
from edgekit.runtimes import LITERT

TYPED_TENSORRT = 10  # the first TensorRT that keeps the file's types outside int8; older Jetsons have opset 17 at most

__all__ = [
    "Artifact",
    "Backend",
    "ConversionContext",
    "Layer",
    "backend_for",
    "direct_route_fits",
    "four_bit_default",
    "precisions_of",
]


def backend_for(profile: TargetProfile, runtime: str, context: ConversionContext) -> Backend:
    """The backend that makes artifacts for `runtime` on devices of `profile`."""
    if runtime == LITERT:
        return LiteRTBackend(context, accelerator=accelerators()[profile.accelerator] if profile.accelerator else None)
    if "TensorrtExecutionProvider" in profile.providers:
        return OnnxTensorRTBackend(context, typed=int(profile.tensorrt.partition(".")[0] or 0) >= TYPED_TENSORRT)
    return OnnxCpuBackend(context, free_batch=profile.free_batch)


def direct_route_fits(profile: TargetProfile, runtime: str) -> bool:
    """True where a target can run files of the direct route: LiteRT on a CPU, whose kernels support every operator."""
    return runtime == LITERT and not profile.accelerator


def precisions_of(profile: TargetProfile, runtime: str) -> tuple[str, ...]:
    """Precisions that both the target and its backend support, in the order in which candidates are made."""
    known: tuple[str, ...]
    if runtime == LITERT:
        known = LiteRTBackend.precisions
    elif "TensorrtExecutionProvider" in profile.providers:
        known = OnnxTensorRTBackend.precisions
    else:
        known = OnnxCpuBackend.precisions
    return tuple(precision for precision in known if precision in profile.precisions)

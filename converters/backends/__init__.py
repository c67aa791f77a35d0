"""What makes artifacts of the canonical graph, one file for each kind of runtime and accelerator."""

from __future__ import annotations

from converters.backends.accelerators import accelerators
from converters.backends.context import Workbench
from converters.backends.contract import Artifact, Backend
from converters.backends.layers import Layer, four_bit_default
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.backends.onnx_tensorrt import OnnxTensorRTBackend
from edgekit.bundle.targets import TargetProfile
from edgekit.runtimes import LITERT

TYPED_TENSORRT = 10  # the first that takes what is not int8 as the file says; Jetsons before it have opset 17 at most

__all__ = ["Artifact", "Backend", "Layer", "Workbench", "backend_for", "four_bit_default", "leads_to", "precisions_of"]


def backend_for(profile: TargetProfile, runtime: str, bench: Workbench) -> Backend:
    """The backend that makes artifacts for `runtime` on devices of `profile`."""
    if runtime == LITERT:
        return LiteRTBackend(bench, accelerator=accelerators()[profile.accelerator] if profile.accelerator else None)
    if "TensorrtExecutionProvider" in profile.providers:
        return OnnxTensorRTBackend(bench, typed=int(profile.tensorrt.partition(".")[0] or 0) >= TYPED_TENSORRT)
    return OnnxCpuBackend(bench, free_batch=profile.free_batch)


def leads_to(profile: TargetProfile, runtime: str) -> bool:
    """True where a target can take files of the direct route: LiteRT on a CPU, whose kernels take every operator."""
    return runtime == LITERT and not profile.accelerator


def precisions_of(profile: TargetProfile, runtime: str) -> tuple[str, ...]:
    """Precisions that both the target and its backend know, in the order in which they are tried."""
    known: tuple[str, ...]
    if runtime == LITERT:
        known = LiteRTBackend.precisions
    elif "TensorrtExecutionProvider" in profile.providers:
        known = OnnxTensorRTBackend.precisions
    else:
        known = OnnxCpuBackend.precisions
    return tuple(precision for precision in known if precision in profile.precisions)

"""Model metadata for clients, and the check of the outputs that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgekit.errors import DataError
from edgekit.preprocess import Raw
from edgekit.runtimes import providers
from edgekit.serving.oip import codec as oip
from edgekit.serving.session.preparation import answered_outputs
from edgekit.serving.session.session import Session
from edgekit.serving.session.stream_table import StreamLimits
from edgekit.tensors import TensorSpec


class ModelDescription(msgspec.Struct, frozen=True):
    """Model metadata for clients.

    Attributes:
        name, version: Identity of the model.
        platform: Runtime and format, for example ``onnxruntime_onnx``.
        inputs, outputs: Logical tensors.
        provider: The delegate or execution provider in use, for example ``XNNPACK``.
        providers_missing: Requested execution providers that are not in use.
        loaded: False while the model is unloaded; the next request loads it.
        raw: Inputs that clients may send as bytes.
        answers: Outputs of a request that was sent as bytes.
        labels: Names of classes by output.
        streams: Limits of the streams of a model with state; None for a model without.
        versions: All versions that clients may name, the oldest first; empty where `version` is the only one.
    """

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provider: str = ""
    loaded: bool = True
    providers_missing: tuple[str, ...] = ()
    raw: tuple[Raw, ...] = ()
    answers: tuple[TensorSpec, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = {}
    streams: StreamLimits | None = None
    versions: tuple[str, ...] = ()


_FORMATS = {"litert": "litert_tflite", "onnxruntime": "onnxruntime_onnx"}


def describe_session(session: Session) -> ModelDescription:
    """Describe a loaded bundle by its logical tensors."""
    manifest, runtime, processing = session.manifest, session.runtime, session.processing
    platform = _FORMATS.get(manifest.runtime, manifest.runtime)
    return ModelDescription(
        manifest.name,
        manifest.version,
        platform,
        session.inputs,
        session.outputs,
        runtime.provider,
        providers_missing=providers.missing(*getattr(runtime, "providers", ((), ()))),
        raw=processing.raw if processing else (),
        answers=processing.outputs if processing else (),
        labels=processing.labels if processing else {},
        streams=session.streams.limits if session.streams is not None else None,
    )


def check_outputs(session: Session, request: oip.InferRequest) -> None:
    """Check the outputs that a request asks for, before the model runs.

    Raises:
        DataError: an output does not exist, or the parameter ``edgekit_postprocess`` is malformed.
    """
    known = [spec.name for spec in answered_outputs(session, request.inputs, request.parameters)]
    unknown = [name for name in request.outputs if name not in known]
    if unknown:
        raise DataError(f"output {unknown[0]!r} is unknown, expected {', '.join(known)}")

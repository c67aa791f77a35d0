"""Instructions of each operator, by the runtimes' own profilers, in an emulated process whose clocks count."""

from __future__ import annotations

import contextlib
import ctypes
import json
import tempfile
from collections.abc import Iterator, Mapping
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from converters.cost.measuring.counters import clocks_count
from converters.cost.measuring.messages import Layer
from edgekit.tensors import Array

_CPU = 1  # kLiteRtHwAcceleratorCpu
# Options of LiteRT's C interface are TOML under an identifier (litert/runtime/litert_runtime_options.h).
_OPTIONS = ((b"runtime_options_string", b"enable_profiling = true\n"), (b"xnnpack", b"num_threads = 1\n"))
_OPERATOR, _DELEGATED = 2, 8  # OPERATOR_INVOKE_EVENT, DELEGATE_PROFILED_OPERATOR_INVOKE_EVENT
_TYPE_BYTES = 1024  # more than a LiteRtRankedTensorType
_UNCOUNTED = ("DELEGATE", "Invoke")


class _Event(Structure):
    """ProfiledEventData of litert/c/litert_profiler_event.h; a time is in microseconds."""

    _fields_ = [
        ("tag", c_char_p), ("kind", c_int), ("start", c_uint64), ("elapsed", c_uint64), ("memory", c_int64 * 6),
        ("first", c_uint64), ("second", c_uint64), ("source", c_int),
    ]  # fmt: skip


class LayersError(Exception):
    """The runtime gave no profile."""


def litert_layers(path: Path) -> list[Layer]:
    """The operators of one run of a .tflite file on zeros, in the order of the run.

    The Python interpreter has no profiler. LiteRT's C interface, which is in the same wheel, has one.

    Raises:
        LayersError: This LiteRT has no such interface, or does not run the file.
    """
    try:
        from ai_edge_litert import interpreter

        library = ctypes.CDLL(str(Path(interpreter.__file__).with_name("libLiteRt.so")))
        return _profile(library, path)
    except (ImportError, OSError, AttributeError) as error:
        raise LayersError(f"this LiteRT has no profiler: {error}") from error


def _profile(library: Any, path: Path) -> list[Layer]:
    def call(name: str, *arguments: Any) -> None:
        status = getattr(library, name)(*arguments)
        if status:
            raise LayersError(f"{name} returned {status}")

    environment, model, options, compiled, profiler, signature = (c_void_p() for _ in range(6))
    call("LiteRtCreateEnvironment", 0, None, byref(environment))
    call("LiteRtCreateModelFromFile", environment, str(path).encode(), byref(model))
    call("LiteRtCreateOptions", byref(options))
    call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
    keep = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)
    texts = [ctypes.create_string_buffer(text) for _, text in _OPTIONS]
    for (identifier, _), text in zip(_OPTIONS, texts, strict=True):
        opaque = c_void_p()
        call("LiteRtCreateOpaqueOptions", identifier, text, keep, byref(opaque))
        call("LiteRtAddOpaqueOptions", options, opaque)
    call("LiteRtCreateCompiledModel", environment, model, options, byref(compiled))
    call("LiteRtCompiledModelGetProfiler", compiled, byref(profiler))
    call("LiteRtGetModelSignature", model, c_size_t(0), byref(signature))

    def buffers(kind: str) -> tuple[c_size_t, Any]:
        count = c_size_t()
        call(f"LiteRtGetNumSignature{kind}s", signature, byref(count))
        made = (c_void_p * count.value)()
        for i in range(count.value):
            tensor, needs, buffer, form = c_void_p(), c_void_p(), c_void_p(), (ctypes.c_char * _TYPE_BYTES)()
            call(f"LiteRtGetSignature{kind}TensorByIndex", signature, c_size_t(i), byref(tensor))
            call("LiteRtGetRankedTensorType", tensor, form)
            call(f"LiteRtGetCompiledModel{kind}BufferRequirements", compiled, c_size_t(0), c_size_t(i), byref(needs))
            call("LiteRtCreateManagedTensorBufferFromRequirements", environment, form, needs, byref(buffer))
            made[i] = buffer
        return count, made

    inputs, outputs = buffers("Input"), buffers("Output")
    run = ("LiteRtRunCompiledModel", compiled, c_size_t(0), *inputs, *outputs)
    call(*run)
    with clocks_count():
        call("LiteRtStartProfiler", profiler)
        call(*run)
        call("LiteRtStopProfiler", profiler)
    events = c_int()
    call("LiteRtGetNumProfilerEvents", profiler, byref(events))
    table = (_Event * max(events.value, 1))()
    call("LiteRtGetProfilerEvents", profiler, events, ctypes.cast(table, POINTER(_Event)))
    return _layers(list(table)[: events.value])


def _layers(events: list[_Event]) -> list[Layer]:
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    for event in events:
        tag = (event.tag or b"").decode(errors="replace")
        if event.kind not in (_OPERATOR, _DELEGATED) or tag.startswith(_UNCOUNTED):
            continue
        layers.append(Layer(f"{tag}:{event.first}", tag, int(event.elapsed)))
        seen.add((event.kind, event.first))
    if not layers:
        raise LayersError("the profile has no operators")
    return layers


def onnx_layers(path: Path, inputs: Mapping[str, Array]) -> list[Layer]:
    """The nodes of one run of a .onnx file, in the order of the run.

    Raises:
        LayersError: The profile has no nodes.
    """
    from edgekit.runtimes.onnx import OnnxRuntime

    with tempfile.TemporaryDirectory() as folder:
        runtime = OnnxRuntime(path, profile=Path(folder) / "profile")
        with contextlib.closing(runtime):
            call = runtime.repeated(inputs)
            call()
            with clocks_count():
                call()
            events = json.loads(runtime.end_profile().read_text())
    return list(_nodes(events))


def _nodes(events: list[dict[str, Any]]) -> Iterator[Layer]:
    runs = [i for i, event in enumerate(events) if event.get("name") == "model_run"]
    if len(runs) < 2:
        raise LayersError("the profile has no runs")
    for event in events[runs[-2] + 1 : runs[-1]]:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kernel = str(event.get("args", {}).get("op_name", ""))
            yield Layer(name.removesuffix("_kernel_time"), kernel, int(event["dur"]))

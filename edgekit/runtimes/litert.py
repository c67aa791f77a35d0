"""LiteRT adapter: runs .tflite artifacts with ai-edge-litert, or with tflite-runtime if only that is installed."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import DataError, MissingExtraError, RuntimeLoadError
from edgekit.runtimes.litert_messages import text_of
from edgekit.tensors import Array, DType, TensorSpec

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    try:
        from tflite_runtime.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtraError("ai_edge_litert", "litert") from error

_log = logging.getLogger(__name__)
_SIGNATURE = "serving_default"

XNNPACK, BUILTIN, REFERENCE = "xnnpack", "builtin", "reference"
_RESOLVERS = {XNNPACK: "AUTO", BUILTIN: "BUILTIN_WITHOUT_DEFAULT_DELEGATES", REFERENCE: "BUILTIN_REF"}


class LiteRTRuntime:
    """RawRuntime over one .tflite file.

    Tensors have the names of the signature (``serving_default`` if there are several), or of the graph if there is no
    signature. The file is mapped into memory: while it is open, replace it only by a rename, never in place.

    Args:
        path: The .tflite file.
        threads: Number of threads, fixed when the interpreter is built.
        kernels: `XNNPACK`, which devices use; `BUILTIN`, the library's optimized kernels without a delegate; or
            `REFERENCE`, its slow plain kernels, for comparisons.
        interpreter: An interpreter class of another library; None uses the installed one.

    Raises:
        RuntimeLoadError: The file is missing, damaged, or contains something that this LiteRT cannot run.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, kernels: str = XNNPACK, interpreter: type[Any] | None = None
    ) -> None:
        self._path = path
        try:
            self._interpreter: Any = (interpreter or Interpreter)(
                model_path=str(path), num_threads=threads, **_resolver(interpreter or Interpreter, kernels)
            )
            self._interpreter.allocate_tensors()
            inputs, outputs = _details(self._interpreter)
            self._inputs = {name: _spec(name, detail) for name, detail in inputs.items()}
            self._outputs = {name: _spec(name, detail) for name, detail in outputs.items()}
            self._provider = _provider(self._interpreter)
        except (ValueError, RuntimeError, OSError, DataError) as error:
            raise RuntimeLoadError(f"{path.name} cannot be loaded by LiteRT: {text_of(error)}") from error
        self._input_index = {name: int(detail["index"]) for name, detail in inputs.items()}
        self._output_index = {name: int(detail["index"]) for name, detail in outputs.items()}
        self._shapes = {name: tuple(int(n) for n in detail["shape"]) for name, detail in inputs.items()}
        self._quantization = {
            name: found
            for name, detail in (*inputs.items(), *outputs.items())
            if (found := _quantization(detail)) is not None
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The artifact's own inputs."""
        return tuple(self._inputs.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The artifact's own outputs."""
        return tuple(self._outputs.values())

    @property
    def provider(self) -> str:
        """``XNNPACK`` if the default delegate runs at least one part of the graph, otherwise ``CPU``."""
        return self._provider

    @property
    def quantization(self) -> dict[str, tuple[float, int]]:
        """(scale, zero point) of integer inputs and outputs, by name."""
        return dict(self._quantization)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see Runtime.run. The outputs are copies, which the next run does not change."""
        if self._interpreter is None:
            raise RuntimeLoadError(f"{self._path.name} is closed")
        faults = [fault for name, spec in self._inputs.items() if name in inputs for fault in spec.faults(inputs[name])]
        if set(inputs) != set(self._inputs):
            faults.append(f"inputs are {', '.join(sorted(inputs))}, expected {', '.join(sorted(self._inputs))}")
        if faults:
            raise DataError("; ".join(faults))
        try:
            self._resize(inputs)
            for name, value in inputs.items():
                self._interpreter.set_tensor(self._input_index[name], value)
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(index) for name, index in self._output_index.items()}
        except (ValueError, RuntimeError) as error:
            raise RuntimeLoadError(f"LiteRT failed to run {self._path.name}: {text_of(error)}") from error

    def repeated(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A call that runs the model on `inputs` again and copies nothing in or out; for measurements.

        Raises:
            DataError, RuntimeLoadError: As `run`.
        """
        self.run(inputs)
        # The library's own object has no Python code around the call; it is private, so it can be missing.
        inner = getattr(self._interpreter, "_interpreter", None)
        invoke: Callable[[], object] = getattr(inner, "Invoke", self._interpreter.invoke)
        return invoke

    def close(self) -> None:
        """Free the model."""
        self._interpreter = None

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        changed = {name: value.shape for name, value in inputs.items() if value.shape != self._shapes[name]}
        for name, shape in changed.items():
            self._interpreter.resize_tensor_input(self._input_index[name], shape)
        if changed:
            self._shapes.update(changed)
            self._interpreter.allocate_tensors()


def _resolver(interpreter: type[Any], kernels: str) -> dict[str, Any]:
    """The interpreter's argument for the kernels; none for the default, so that no experimental argument is used."""
    if kernels == XNNPACK:
        return {}
    library = importlib.import_module(interpreter.__module__)
    return {"experimental_op_resolver_type": library.OpResolverType[_RESOLVERS[kernels]]}


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = list(interpreter.get_signature_list())
    if not signatures:
        return {d["name"]: d for d in inputs}, {d["name"]: d for d in outputs}
    key = _SIGNATURE if _SIGNATURE in signatures else signatures[0]
    runner = interpreter.get_signature_runner(key)
    named: tuple[dict[str, Any], dict[str, Any]] = (runner.get_input_details(), runner.get_output_details())
    if {d["index"] for d in named[0].values()} != {d["index"] for d in inputs}:
        raise RuntimeLoadError(f"signature {key!r} does not run the file's main graph")
    return named


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    free = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(None if size < 0 else int(size) for size in free)
    return TensorSpec(name, DType.of(detail["dtype"]), shape)


def _quantization(detail: Mapping[str, Any]) -> tuple[float, int] | None:
    parameters = detail["quantization_parameters"]
    if len(parameters["scales"]) != 1:
        return None
    return float(parameters["scales"][0]), int(parameters["zero_points"][0])


def _provider(interpreter: Any) -> str:
    """The delegate of the prepared graph, in which a delegated part is one DELEGATE node.

    No other delegate is passed in, so a delegate can only be LiteRT's default, XNNPACK.
    """
    try:
        names = {op["op_name"] for op in interpreter._get_ops_details()}
    except (AttributeError, KeyError) as error:  # a private method of the library, so it can be missing
        _log.warning("this LiteRT does not report its delegates: %s", error)
        return "unknown"
    return "XNNPACK" if "DELEGATE" in names else "CPU"

"""ONNX Runtime adapter: runs .onnx artifacts, and reports the execution providers that are really used."""

from __future__ import annotations

import functools
import logging
import platform
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ArenaFullError, DataError, MissingExtraError, RuntimeLoadError
from edgekit.runtimes import providers as rules
from edgekit.runtimes.ort_messages import advice_for, text_of
from edgekit.runtimes.providers import CPU, PREFERRED
from edgekit.tensors import Array, DType, TensorSpec

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as _state
except ImportError as error:
    raise MissingExtraError("onnxruntime", "onnx") from error

_log = logging.getLogger(__name__)

# Pad_Fusion takes zeros around the input of a MaxPool for its padding, which is minus infinity (ONNX Runtime 1.31).
WRONG_OPTIMIZERS = ("Pad_Fusion",)
X86_64 = ("x86_64", "amd64")  # platform.machine() in lower case

# ONNX Runtime's exceptions have no common base class below Exception; its C++ code raises only these.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_FULL = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")
_arena_lock = threading.Lock()  # a new session uses the arena that is registered at that moment
_TYPES = {"float": DType.FLOAT32, "float16": DType.FLOAT16, "double": DType.FLOAT64, "string": DType.BYTES}
_TYPES.update({dtype.value: dtype for dtype in DType if dtype.value not in _TYPES})


def installed_providers() -> tuple[str, ...]:
    """The providers of the installed ONNX Runtime that edgekit uses, the fastest first."""
    have = set(onnxruntime.get_available_providers())
    return tuple(name for name in PREFERRED if name in have)


class OnnxRuntime:
    """RawRuntime over one .onnx file or its bytes.

    Thread spinning is off, because it keeps whole cores busy. On x86, int8 sums are exact
    (``session.x64quantprecision``), so that outputs equal those on ARM.

    Args:
        model: A file, or the bytes of one.
        providers: Execution providers, the preferred first. A missing one is logged and never in `provider`.
        options: Options of each provider by name.
        required: A missing provider is an error.
        threads: Number of threads of one run.
        arena: Keep freed memory for the next run; useful if every run has the same size.
        arena_bytes: Use an arena in any case, and limit it to this size. It has intermediate values and outputs, not
            the weights. 0 for no limit.
        optimize: Let ONNX Runtime rewrite the graph; False runs it unchanged, for comparisons.
        exact: Exact int8 sums on x86, see above; False uses ONNX Runtime's default, for comparisons.
        quiet: ONNX Runtime prints nothing of its own where it fails; for trial runs.
        profile: Path and start of the name of a profile that `end_profile` writes; None for no profile.

    Raises:
        RuntimeLoadError: The model is missing, damaged, or contains something that this ONNX Runtime cannot run; or a
            required provider is missing.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        providers: Sequence[str] = (CPU,),
        options: Mapping[str, Mapping[str, str]] | None = None,
        required: bool = False,
        threads: int = 1,
        arena: bool = True,
        arena_bytes: int = 0,
        optimize: bool = True,
        exact: bool = True,
        quiet: bool = False,
        profile: Path | None = None,
    ) -> None:
        self._arena_bytes = arena_bytes
        self._name = "the model" if isinstance(model, bytes) else model.name
        available = set(onnxruntime.get_available_providers())
        chosen = [name for name in providers if name in available]
        if required:
            # Checked here and not only below, because building TensorRT engines takes minutes.
            self._require(rules.missing(providers, chosen), sorted(available))
        session_options = _options(threads, arena or arena_bytes > 0, optimize=optimize, exact=exact, quiet=quiet)
        if profile is not None:
            session_options.enable_profiling, session_options.profile_file_prefix = True, str(profile)
        try:
            self._session: Any = _session(
                model if isinstance(model, bytes) else str(model),
                arena_bytes,
                sess_options=session_options,
                providers=chosen or [CPU],
                provider_options=[dict((options or {}).get(name, {})) for name in chosen or [CPU]],
                disabled_optimizers=list(WRONG_OPTIMIZERS),
            )
            self._session._model_bytes = None  # kept only for another start of the session; it holds the weights
            self._inputs = {node.name: _spec(node) for node in self._session.get_inputs()}
            self._outputs = {node.name: _spec(node) for node in self._session.get_outputs()}
            self._names = list(self._outputs)
            self._has_scalar = any(not spec.shape for spec in self._inputs.values())
            self._has_text = any(s.dtype is DType.BYTES for s in (*self._inputs.values(), *self._outputs.values()))
        except _ERRORS as error:
            raise RuntimeLoadError(
                f"{self._name} cannot be loaded by ONNX Runtime: {text_of(error)}", advice=advice_for(error)
            ) from error
        actual = self._session.get_providers()
        self._provider = str(actual[0])
        self.providers = tuple(providers), tuple(actual)
        self.missing_providers = rules.missing(providers, actual)
        if required:
            self._require(self.missing_providers, actual)
        if self.missing_providers:
            _log.warning(
                "%s requested %s and runs on %s instead; this ONNX Runtime has %s",
                *(self._name, ", ".join(self.missing_providers), self._provider, ", ".join(sorted(available))),
            )

    def _failed(self, error: Exception) -> RuntimeLoadError:
        full = _FULL.search(str(error)) if self._arena_bytes else None
        if full is None:
            return RuntimeLoadError(f"ONNX Runtime failed to run {self._name}: {text_of(error)}")
        return ArenaFullError(
            f"ONNX Runtime has not enough memory to run {self._name}: it asked for {_mib(full[2])} at once, "
            f"{_mib(full[1])} are left of the {_mib(self._arena_bytes)} of its arena (arena_mib)",
            advice="Raise arena_mib, or send fewer rows in one request.",
        )

    def _require(self, missing: Sequence[str], available: Sequence[str]) -> None:
        """Raise RuntimeLoadError if a required provider is missing."""
        if missing:
            raise RuntimeLoadError(
                f"{self._name} requires {', '.join(missing)}, ONNX Runtime has {', '.join(available)}",
                advice="Install the provider's libraries, or set require_providers to false to run without it.",
            )

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
        """The first provider of the session."""
        return self._provider

    @property
    def quantization(self) -> dict[str, tuple[float, int]]:
        """Empty: ONNX states scales in the graph, not on its inputs and outputs."""
        return {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see Runtime.run.

        Raises:
            ArenaFullError: This run needs more memory than `arena_bytes`; a smaller run can still succeed.
        """
        if self._session is None:
            raise RuntimeLoadError(f"{self._name} is closed")
        if self._has_scalar:
            self._check(inputs)
        fed = dict(inputs)
        if self._has_text:
            fed = {name: _to_text(value) if value.dtype == object else value for name, value in fed.items()}
        try:
            outputs = self._session.run(self._names, fed)
        except _ERRORS as error:
            self._check(inputs)  # gives a clearer message than ONNX Runtime's own check
            raise self._failed(error) from error
        if self._has_text:
            outputs = [_to_bytes(value) if value.dtype == object else value for value in outputs]
        return dict(zip(self._names, outputs, strict=True))

    def _check(self, inputs: Mapping[str, Array]) -> None:
        faults = [fault for name, spec in self._inputs.items() if name in inputs for fault in spec.faults(inputs[name])]
        if inputs.keys() != self._inputs.keys():
            faults.append(f"inputs are {', '.join(sorted(inputs))}, expected {', '.join(sorted(self._inputs))}")
        if faults:
            raise DataError("; ".join(faults))

    def repeated(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """A call that runs the model on `inputs` again and copies nothing in or out; for measurements.

        Raises:
            DataError, RuntimeLoadError: As `run`.
        """
        outputs = self.run(inputs)
        if self._has_text:  # strings have no memory that can be bound
            return functools.partial(self.run, dict(inputs))
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        try:  # without Python code around the call; these are private, so they can be missing
            return functools.partial(self._session._sess.run_with_iobinding, binding._iobinding, None)
        except AttributeError:
            return functools.partial(self._session.run_with_iobinding, binding)

    def end_profile(self) -> Path:
        """Write the profile and return its path; only with `profile`."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the model."""
        self._session = None


def _session(model: str | bytes, arena_bytes: int, *, sess_options: Any, **chosen: Any) -> Any:
    """Make a session; with `arena_bytes` it has a limited arena of its own, which is freed with the session.

    ONNX Runtime can limit only arenas that are registered for the whole process. But the registered arena can be
    replaced, and a session keeps the arena with which it was made.
    """
    if not arena_bytes:
        return onnxruntime.InferenceSession(model, sess_options=sess_options, **chosen)
    sess_options.add_session_config_entry("session.use_env_allocators", "1")
    sess_options.log_severity_level = 4  # a run over the limit raises an error, and must not also fill the log
    with _arena_lock:
        _register_arena(arena_bytes)
        try:
            return onnxruntime.InferenceSession(model, sess_options=sess_options, **chosen)
        finally:
            _register_arena(arena_bytes)  # an empty arena, so that the session's arena is freed with the session


def _register_arena(limit: int) -> None:
    kind, memory = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    choices = {
        "max_mem": limit,
        "arena_extend_strategy": 1,
    }  # 1: kSameAsRequested; doubling reaches the limit too early
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", kind, 0, memory), onnxruntime.OrtArenaCfg(choices)
    )


def _mib(size: str | int) -> str:
    return f"{int(size) / 2**20:.1f} MiB"


def _options(threads: int, arena: bool, *, optimize: bool, exact: bool, quiet: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4 if quiet else 3  # errors only; this adapter reports the relevant warnings
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact and platform.machine().lower() in X86_64:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise RuntimeLoadError(f"{node.name} is {node.type}, which edgekit does not support")
    return TensorSpec(node.name, _TYPES[kind], tuple(n if isinstance(n, int) else None for n in node.shape))


def _to_text(value: Array) -> Array:
    """BYTES as text, because ONNX Runtime takes strings as Python text.

    Raises:
        DataError: `value` contains bytes that are not UTF-8.
    """
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in value.ravel()]
    except UnicodeDecodeError as error:
        raise DataError(f"a BYTES element is not UTF-8, which ONNX strings must be: {error}") from error
    return np.array(texts, dtype=object).reshape(value.shape)


def _to_bytes(value: Array) -> Array:
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in value.ravel()]
    return np.array(items, dtype=object).reshape(value.shape)

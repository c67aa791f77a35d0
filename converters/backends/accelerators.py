"""Integer-only accelerators: checks that a file fits one, and runs the vendor's compiler.

The lists of operators are data, in accelerators.toml, with their source.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from converters.backends.tflite.reader import TYPES, operator_name, parse_tflite
from converters.foreign_text import SHOWN
from edgekit.errors import ConversionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WEIGHTS_AT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}  # input with weights
INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "bool")
COMPILER_SECONDS = 600  # time-out of a compiler
# Log line of the Edge TPU compiler: operator, count, status.
EDGETPU_LINE = re.compile(r"^([A-Z][A-Z0-9_]+)\s+(\d+)\s+(\S.*)$", re.MULTILINE)
VELA_CPU_LINE = re.compile(r"^CPU operators = (\d+)", re.MULTILINE)


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators and tensors that one accelerator supports.

    Attributes:
        name: Name in target profiles.
        title: Name for people.
        source: Source of the list of operators.
        operators: TensorFlow Lite operators that it runs.
        large_axes: Largest number of axes longer than 1 in a tensor.
        compiler: Command that compiles a file for it.
    """

    name: str
    title: str
    source: str
    operators: tuple[str, ...]
    large_axes: int
    compiler: tuple[str, ...]


class Compiled(msgspec.Struct, frozen=True):
    """Result of the compiler: the file, and one sentence for each part that runs on the CPU."""

    data: bytes
    on_cpu: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def accelerators() -> Mapping[str, Accelerator]:
    """Every accelerator that edgekit knows, by name."""
    text = importlib.resources.files("converters.backends").joinpath("accelerators.toml").read_text(encoding="utf-8")
    return {
        name: msgspec.convert({"name": name, **values}, Accelerator) for name, values in tomllib.loads(text).items()
    }


def faults(data: bytes, accelerator: Accelerator, *, quantized: bool = True) -> list[str]:
    """Every reason why the .tflite file `data` does not fit, one sentence each; empty where it fits.

    Operators with the same name and fault share a sentence. Types count only in a `quantized` file.
    """
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    places: dict[tuple[str, str], list[int]] = {}

    def fault(index: int, name: str, text: str) -> None:
        indices = places.setdefault((name, text), [])
        if index not in indices:
            indices.append(index)

    for index, operator in enumerate(graph.operators):
        name = operator_name(model, operator)
        if name not in accelerator.operators:
            fault(index, name, f"is not supported by {accelerator.title}")
            continue  # its types do not matter
        weights = graph.tensors[operator.inputs[WEIGHTS_AT[name]]] if name in WEIGHTS_AT else None
        if weights is not None and model.buffers[weights.buffer].data is None:
            fault(index, name, "computes with weights that another layer makes, expected constants")
        for number in (*operator.inputs, *operator.outputs):
            tensor = graph.tensors[number] if number >= 0 else None
            if tensor is None:
                continue
            kind = TYPES[tensor.type]
            if quantized and kind not in INTEGERS:
                fault(index, name, f"has a tensor of {kind}, expected integers only")
            if sum(1 for size in tensor.shape if size != 1) > accelerator.large_axes and number in operator.outputs:
                shape = [int(size) for size in tensor.shape]
                fault(index, name, f"makes {shape}, expected at most {accelerator.large_axes} axes longer than 1")
    reasons = [f"the file has {len(model.subgraphs)} subgraphs, expected one"] if len(model.subgraphs) > 1 else []
    for (name, text), indices in places.items():
        layer = _layer(graph, indices[0])
        places_text = [f"layer {layer!r}"] * bool(layer) + [f"and {len(indices) - 1} more"] * (len(indices) > 1)
        where = f" ({' '.join(places_text)})" if places_text else ""
        reasons.append(f"operator {indices[0]}, {name},{where} {text}")
    for index in (*graph.inputs, *graph.outputs):
        if quantized and TYPES[graph.tensors[index].type] not in INTEGERS:
            reasons.append(f"an input or output is {TYPES[graph.tensors[index].type]}, expected integers")
    return list(dict.fromkeys(reasons))


def _layer(graph: Any, index: int) -> str:
    """The layer that an operator was made of, by the name of its output; empty in a file without names."""
    outputs = graph.operators[index].outputs
    name = (graph.tensors[outputs[0]].name or b"").decode("utf-8", "replace") if len(outputs) else ""
    return name.partition(";")[0].rpartition("/")[0]


def require_fit(data: bytes, accelerator: Accelerator, *, quantized: bool = True) -> None:
    """Check that the whole file `data` runs on `accelerator`; `quantized` as in `faults`.

    Raises:
        ConversionError: an operator does not; the message names each one.
    """
    reasons = faults(data, accelerator, quantized=quantized)
    if reasons:
        raise ConversionError(
            f"the model does not run on {accelerator.title}: {'; '.join(reasons)}",
            advice=f"Supported operators: {', '.join(accelerator.operators)}.",
        )


def compile_for(path: Path, accelerator: Accelerator, folder: Path) -> Compiled | None:
    """Run the vendor's compiler on the file `path`; None where it is not installed.

    Args:
        path: A .tflite file.
        accelerator: The accelerator to compile for.
        folder: Output folder of the compiler; it should be empty.

    Raises:
        ConversionError: the compiler refuses the file, takes too long, or writes nothing.
    """
    if shutil.which(accelerator.compiler[0]) is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    known = {"model": str(path), "folder": str(folder), "device": accelerator.name}
    command = [part.format(**known) for part in accelerator.compiler]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionError(f"{command[0]} failed: {error}") from error
    written = sorted(folder.glob("*.tflite"))
    if done.returncode != 0 or not written:
        output = (done.stderr.strip() or done.stdout.strip())[-800:]
        status = f"exit status {done.returncode}" if done.returncode else "it wrote no file"
        shown = f"; {SHOWN}" if output else ""
        raise ConversionError(f"{command[0]} refuses the model ({status}{shown})", foreign_text=output)
    return Compiled(written[0].read_bytes(), _parts_on_cpu(done.stdout))


def _parts_on_cpu(output: str) -> tuple[str, ...]:
    """The parts that the compiler left to the CPU, by its output."""
    parts = [
        f"{count} {name}: {status}" for name, count, status in EDGETPU_LINE.findall(output) if "Mapped" not in status
    ]
    parts += [f"{count} operators run on the CPU" for count in VELA_CPU_LINE.findall(output) if count != "0"]
    return tuple(parts)

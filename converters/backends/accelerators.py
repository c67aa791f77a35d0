"""Accelerators that take integers only: whether a file fits one, and what its maker's compiler says.

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

import msgspec

from converters.backends.tflite.reader import TYPES, operator_name, parse_tflite
from edgekit.errors import ConversionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "bool")
SECONDS = 600  # a compiler that takes longer is given up
LINE = re.compile(
    r"^([A-Z][A-Z0-9_]+)\s+(\d+)\s+(\S.*)$", re.MULTILINE
)  # of the Edge TPU compiler: operator, count, where
ON_CPU = re.compile(r"^CPU operators = (\d+)", re.MULTILINE)  # of vela


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one accelerator takes.

    Attributes:
        name: As target profiles name it.
        title: For people.
        source: Where the list is from.
        operators: Of TensorFlow Lite, those that it runs.
        large_axes: How many axes longer than 1 a tensor may have.
        compiler: The command that compiles a file for it.
    """

    name: str
    title: str
    source: str
    operators: tuple[str, ...]
    large_axes: int
    compiler: tuple[str, ...]


class Compiled(msgspec.Struct, frozen=True):
    """What the compiler made: the file, and what it left to the CPU, as sentences."""

    data: bytes
    left: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def accelerators() -> Mapping[str, Accelerator]:
    """Every accelerator that edgekit knows, by name."""
    text = importlib.resources.files("converters.backends").joinpath("accelerators.toml").read_text(encoding="utf-8")
    return {
        name: msgspec.convert({"name": name, **values}, Accelerator) for name, values in tomllib.loads(text).items()
    }


def faults(data: bytes, accelerator: Accelerator) -> list[str]:
    """Every reason why the .tflite file `data` does not fit, one sentence each; empty where it does."""
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    found = []
    if len(model.subgraphs) > 1:
        found.append(f"it has {len(model.subgraphs)} subgraphs, expected one")
    for place, operator in enumerate(graph.operators):
        name = operator_name(model, operator)
        if name not in accelerator.operators:
            found.append(f"operator {place}, {name}, is not one that {accelerator.title} runs")
        for index in (*operator.inputs, *operator.outputs):
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is None:
                continue
            kind = TYPES[tensor.type]
            if kind not in INTEGERS:
                found.append(f"operator {place}, {name}, has a tensor of {kind}, expected integers only")
            if sum(1 for size in tensor.shape if size != 1) > accelerator.large_axes and index in operator.outputs:
                shape = [int(size) for size in tensor.shape]
                found.append(
                    f"operator {place}, {name}, makes {shape}, expected at most {accelerator.large_axes} long axes"
                )
    for index in (*graph.inputs, *graph.outputs):
        if TYPES[graph.tensors[index].type] not in INTEGERS:
            found.append(f"an input or output is {TYPES[graph.tensors[index].type]}, expected integers")
    return list(dict.fromkeys(found))


def require_fit(data: bytes, accelerator: Accelerator) -> None:
    """Check that the whole of `data` runs on `accelerator`.

    Raises:
        ConversionError: something does not; names each operator.
    """
    found = faults(data, accelerator)
    if found:
        raise ConversionError(
            f"the model does not run on {accelerator.title}: {'; '.join(found)}",
            advice=f"It runs: {', '.join(accelerator.operators)}.",
        )


def compile_for(path: Path, accelerator: Accelerator, folder: Path) -> Compiled | None:
    """Run the maker's compiler on the file `path`; None where it is not installed.

    Args:
        path: A .tflite file.
        accelerator: What to compile for.
        folder: Where the compiler may write; it should be empty.

    Raises:
        ConversionError: the compiler refuses the file, takes too long, or writes nothing.
    """
    if shutil.which(accelerator.compiler[0]) is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    known = {"model": str(path), "folder": str(folder), "device": accelerator.name}
    command = [part.format(**known) for part in accelerator.compiler]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConversionError(f"{command[0]} failed: {error}") from error
    written = sorted(folder.glob("*.tflite"))
    if done.returncode != 0 or not written:
        said = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise ConversionError(
            f"{command[0]} refuses the model (exit status {done.returncode}): {said or 'it says nothing'}"
        )
    return Compiled(written[0].read_bytes(), _left(done.stdout))


def _left(output: str) -> tuple[str, ...]:
    """What the compiler says it left to the CPU."""
    found = [f"{count} {name}: {where}" for name, count, where in LINE.findall(output) if "Mapped" not in where]
    found += [f"{count} operators run on the CPU" for count in ON_CPU.findall(output) if count != "0"]
    return tuple(found)

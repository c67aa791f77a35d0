"""torch.export programs (.pt2) made safe to load, without PyTorch.

PyTorch's own loader unpickles parts of the archive, evaluates its size expressions as Python and looks operators up by
any name. So what PyTorch is given is a copy that was written here, of parts that were read and found harmless: raw
tensors, and a graph of named operators over them.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import ModelFormatError, UnsupportedOpError

MAX_JSON_BYTES = 256 * 1024**2
PROGRAM = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_KEPT = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|byteorder|\.data/version|archive_(format|version)"
)
_RAW = re.compile(r"weight_\d+|tensor_\d+")
_INPUTS = re.compile(r"data/sample_inputs/[\w-]+\.pt")
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_METADATA = ("nn_module_stack", "torch_fn")
_EXPRESSION = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Add,
               ast.Sub, ast.Mult, ast.Pow, ast.Mod, ast.FloorDiv, ast.Div, ast.USub)  # fmt: skip
_FUNCTIONS = ("Symbol", "Integer", "Mul", "Add", "Pow", "Max", "Min", "Mod", "FloorDiv", "PythonMod", "CleanDiv",
              "CeilDiv", "ModularIndexing")  # fmt: skip
SAVE_AGAIN = "Save it with torch.export.save of PyTorch 2.9 or newer, from plain tensors."


def write_checked(source: Path, target: Path) -> None:
    """Write the harmless parts of the program at `source` to `target`; sample inputs are left out.

    Raises:
        ModelFormatError: it is damaged, of the older format, or holds pickles or expressions that are code.
        UnsupportedOpError: a node calls something that is no operator of PyTorch's own.
    """
    try:
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
            names = _names(archive, source)
            _copy(archive, names, copy, source)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFormatError(f"{source} is a damaged torch.export program: {error}", advice=SAVE_AGAIN) from error


def _names(archive: zipfile.ZipFile, source: Path) -> dict[str, str]:
    """Names in the archive by what they are without the folder that PyTorch puts around them."""
    found = {name.partition("/")[2]: name for name in archive.namelist()}
    if PROGRAM not in found:
        raise ModelFormatError(f"{source} has no {PROGRAM}, as torch.export.save writes it", advice=SAVE_AGAIN)
    return found


def _copy(archive: zipfile.ZipFile, names: dict[str, str], copy: zipfile.ZipFile, source: Path) -> None:
    for short, name in names.items():
        if short == PROGRAM:
            copy.writestr(f"program/{short}", json.dumps(_checked_program(_json(archive, name), source)))
        elif short in CONFIGS:
            _require_raw(_json(archive, name), source)
            copy.writestr(f"program/{short}", archive.read(name))
        elif _KEPT.fullmatch(short):
            with archive.open(name) as reader, copy.open(f"program/{short}", "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, 1024 * 1024)
        elif _INPUTS.fullmatch(short):
            copy.writestr(f"program/{short}", b"")  # a pickle; PyTorch takes an empty one for none
        elif short.startswith("data/"):
            raise _pickled(source, short)


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    info = archive.getinfo(name)
    if info.file_size > MAX_JSON_BYTES:
        raise ValueError(f"{name} is {info.file_size} bytes, the limit is {MAX_JSON_BYTES}")
    return json.loads(archive.read(info))


def _require_raw(config: Any, source: Path) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not _RAW.fullmatch(entry["path_name"]):
            raise _pickled(source, name)


def _pickled(source: Path, what: str) -> ModelFormatError:
    return ModelFormatError(
        f"{source} keeps {what} as a pickle; loading it could run any program, so edgekit never does",
        advice="Export a model of plain dense tensors, in eval mode and without quantized or custom objects.",
    )


def _checked_program(program: Any, source: Path) -> Any:
    program["guards_code"] = []  # Python that checks sizes; parity checks more
    for symbol in program["range_constraints"]:
        _require_arithmetic(symbol, source)
    for node in _dicts(program, "target"):
        if isinstance(node.get("inputs"), list):
            _check_node(node)
    for entry in _dicts(program, "expr_str"):
        _require_arithmetic(entry["expr_str"], source)
    for entry in _dicts(program, "in_spec"):
        _require_plain_containers(json.loads(entry["in_spec"]), source)
        _require_plain_containers(json.loads(entry["out_spec"]), source)
    return program


def _check_node(node: dict[str, Any]) -> None:
    if not _OPERATOR.fullmatch(node["target"]):
        raise UnsupportedOpError(
            str(node["target"]),
            _layer(node),
            backend="any target: only PyTorch's own operators are known",
            advice="Export the model with built-in modules and functions, without control flow on values.",
        )
    node["metadata"] = {key: value for key, value in (node.get("metadata") or {}).items() if key in _METADATA}


def _layer(node: dict[str, Any]) -> str:
    outputs = node.get("outputs") or [{}]
    return str(node.get("name") or (outputs[0].get("as_tensor") or {}).get("name") or "")


def _require_arithmetic(text: Any, source: Path) -> None:
    """PyTorch evaluates these as Python: only sums and products of named sizes may pass."""
    tree = ast.parse(str(text), mode="eval") if len(str(text)) < 10_000 else None
    for node in ast.walk(tree) if tree is not None else [None]:
        known = isinstance(node, _EXPRESSION) and not (
            (isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS))
            or (isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value))
        )
        if not known:
            raise ModelFormatError(
                f"{source} describes a size by {str(text)[:80]!r}, which is no plain arithmetic of sizes",
                advice="Export it again with fixed sizes and at most the batch left free.",
            )


def _require_plain_containers(spec: Any, source: Path) -> None:
    for entry in _dicts(spec, "type"):
        if entry["type"] not in _CONTAINERS:
            raise ModelFormatError(
                f"{source} takes or answers a {entry['type']}, expected tensors, tuples, lists and dictionaries",
                advice="Wrap the model in a module that takes tensors and returns tensors, and export that.",
            )


def _dicts(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every dictionary in `value` that has `key`."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            if key in found:
                yield found
            pending.extend(found.values())
        elif isinstance(found, list):
            pending.extend(found)

"""Write a copy of a torch.export program (.pt2) that is safe to load, without PyTorch.

PyTorch's own loader unpickles parts of the archive, evaluates size expressions as Python, and looks up operators by any
name. PyTorch therefore gets a copy with checked parts only: raw tensors, and a graph of PyTorch's named operators.
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
_COPIED = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|byteorder|\.data/version|archive_(format|version)"
)
_RAW = re.compile(r"weight_\d+|tensor_\d+")
_INPUTS = re.compile(r"data/sample_inputs/[\w-]+\.pt")
_BRANCH = "torch.ops.higher_order.cond"  # exported as If; its branches are graphs of nodes, which are checked too
_OPERATOR = re.compile(
    rf"torch\.ops\.(aten|prims)\.\w+\.\w+|{re.escape(_BRANCH)}|_operator\.\w+|math\.\w+|torch\.sym_\w+"
)
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_METADATA = ("nn_module_stack", "torch_fn")
_EXPRESSION = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Add,
               ast.Sub, ast.Mult, ast.Pow, ast.Mod, ast.FloorDiv, ast.Div, ast.USub)  # fmt: skip
_UNBACKED = re.compile(r"Symbol\('(u\d+)'")
_FUNCTIONS = ("Symbol", "Integer", "Mul", "Add", "Pow", "Max", "Min", "Mod", "FloorDiv", "PythonMod", "CleanDiv",
              "CeilDiv", "ModularIndexing")  # fmt: skip
_COMPARISONS = ("Equality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "Unequality")
SAVE_AGAIN = "Save it with torch.export.save of PyTorch 2.9 or newer, from plain tensors."


def write_checked(source: Path, target: Path) -> None:
    """Write the checked parts of the program at `source` to `target`; sample inputs are left out.

    Raises:
        ModelFormatError: The file is damaged, of the older format, or contains pickles or expressions that are code.
        UnsupportedOpError: A node calls a function that is not one of PyTorch's own operators.
    """
    try:
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
            names = _names(archive, source)
            _copy(archive, names, copy, source)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFormatError(f"{source} is a damaged torch.export program: {error}", advice=SAVE_AGAIN) from error


def _names(archive: zipfile.ZipFile, source: Path) -> dict[str, str]:
    """Full names in the archive by their names without the top folder that PyTorch adds."""
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if PROGRAM not in names:
        raise ModelFormatError(f"{source} has no {PROGRAM}, which torch.export.save writes", advice=SAVE_AGAIN)
    return names


def _copy(archive: zipfile.ZipFile, names: dict[str, str], copy: zipfile.ZipFile, source: Path) -> None:
    for short, name in names.items():
        if short == PROGRAM:
            copy.writestr(f"program/{short}", json.dumps(_checked_program(_json(archive, name), source)))
        elif short in CONFIGS:
            _require_raw(_json(archive, name), source)
            copy.writestr(f"program/{short}", archive.read(name))
        elif _COPIED.fullmatch(short):
            with archive.open(name) as reader, copy.open(f"program/{short}", "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, 1024 * 1024)
        elif _INPUTS.fullmatch(short):
            copy.writestr(f"program/{short}", b"")  # sample inputs are a pickle; PyTorch accepts an empty file as none
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
        f"{source} stores {what} as a pickle; loading it could run any program, so edgekit refuses it",
        advice="Export a model of plain dense tensors, in eval mode and without quantized or custom objects.",
    )


def _checked_program(program: Any, source: Path) -> Any:
    program["guards_code"] = []  # Python code that checks sizes; the parity check covers them
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
        target = str(node["target"])
        flow = target.startswith("torch.ops.higher_order.")
        raise UnsupportedOpError(
            target,
            _layer(node),
            backend="any target: "
            + ("it is control flow that depends on values" if flow else "only PyTorch's own operators are supported"),
            advice="Compute both branches and choose with torch.where, and give loops a fixed number of steps."
            if flow
            else "Export the model with built-in modules and functions.",
        )
    node["metadata"] = {key: value for key, value in (node.get("metadata") or {}).items() if key in _METADATA}


def _layer(node: dict[str, Any]) -> str:
    outputs = node.get("outputs") or [{}]
    return str(node.get("name") or (outputs[0].get("as_tensor") or {}).get("name") or "")


def _require_arithmetic(text: Any, source: Path) -> None:
    """Refuse a size expression unless it is arithmetic of named sizes; PyTorch evaluates it as Python."""
    if depends := _UNBACKED.search(str(text)):
        raise ModelFormatError(
            f"{source} has a size that depends on values ({depends[1]}), as of nonzero, unique or a boolean index",
            advice="Export the part of the model before it, and compute the rest after the model; or use a fixed size, "
            "for example torch.topk instead of a threshold.",
        )
    if str(text).startswith(tuple(f"{name}(" for name in _COMPARISONS)):
        raise ModelFormatError(
            f"{source} has a branch that a free size decides: {str(text)[:80]}",
            advice="Export it with a fixed size, for example a batch of 1, so that one branch is left.",
        )
    tree = ast.parse(str(text), mode="eval") if len(str(text)) < 10_000 else None
    for node in ast.walk(tree) if tree is not None else [None]:
        known = isinstance(node, _EXPRESSION) and not (
            (isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS))
            or (isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value))
        )
        if not known:
            raise ModelFormatError(
                f"{source} describes a size by {str(text)[:80]!r}, expected arithmetic of sizes",
                advice="Export it again with fixed sizes; only the batch may be free.",
            )


def _require_plain_containers(spec: Any, source: Path) -> None:
    for entry in _dicts(spec, "type"):
        if entry["type"] not in _CONTAINERS:
            raise ModelFormatError(
                f"{source} takes or returns a {entry['type']}, expected tensors, tuples, lists and dictionaries",
                advice="Wrap the model in a module that takes tensors and returns tensors, and export that.",
            )


def _dicts(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every dictionary inside `value` that has `key`."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if key in item:
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)

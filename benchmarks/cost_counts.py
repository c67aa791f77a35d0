"""Makes files of networks, counts their instructions on emulated cores, and collects the counts.

python -m benchmarks.cost_networks FOLDER/models          # the networks, in Keras
python -m benchmarks.cost_layers FOLDER/models            # single layers in many sizes
python -m benchmarks.cost_counts files FOLDER             # each in every precision, for LiteRT and ONNX Runtime
python -m benchmarks.cost_counts count FOLDER cortex-a72  # needs `make arm`; continues where it was stopped
python -m benchmarks.cost_counts collect FOLDER           # benchmarks/results/cost_counts.json
python -m benchmarks.cost_fit                             # converters/cost/fitted.json

Counting takes a second or two a file.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.cost_fit import COUNTS, LAYERS_ONLY, RUN_OF_ONNX_RUNTIME, Counted, load
from converters.backends import ConversionContext, four_bit_default
from converters.backends.litert import LiteRTBackend
from converters.backends.onnx_cpu import OnnxCpuBackend
from converters.backends.tflite import operations as litert
from converters.cost.measuring.messages import Layer
from converters.cost.measuring.process import Measuring
from converters.cost.operations import onnx
from converters.cost.operations.operation import Operation, is_product
from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.load import load_model
from converters.passes import CANONICAL_PASSES, RemoveDeadChannels, Simplify, run_pass
from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe
from edgekit.errors import EdgekitError
from edgekit.runtimes import LITERT
from edgekit.tensors import Array

ROWS = 24  # of random data for the calibration
FILES_A_PROCESS = 12  # an emulated process keeps some memory of each
# Kernels of LiteRT's profile by operator, where every operator has one; the first that matches.
PRODUCTS = {
    "matmul": r"BATCH_MATMUL|Batch Matrix",
    "transposed": r"Deconv|TRANSPOSE_CONV",
    "depthwise": r".*DWConv|DEPTHWISE",
    "": r"Convolution|CONV_2D|Fully Connected|FULLY_CONNECTED",
}
OTHERS = {
    "dynamic": r"Convert \(NC, F32, Q", "TANH": r"TanH|TANH", "LOGISTIC": r"Sigmoid|LOGISTIC", "GELU": r"GELU",
    "SOFTMAX": r"Softmax|SOFTMAX", "MAX_POOL_2D": r"Max Pool|MAX_POOL", "AVERAGE_POOL_2D": r"Average Pool|AVERAGE",
    "TRANSPOSE": r"Transpose|TRANSPOSE", "TILE": r"TILE", "RESIZE_BILINEAR": r"Resize|RESIZE", "MUL": r"Multiply|MUL",
    "ADD": r"Add|ADD", "SUB": r"Subtract|SUB", "HARD_SWISH": r"HardSwish|HARD", "LEAKY_RELU": r"Leaky|LEAKY",
    "NEG": r"Negate|NEG", "RSQRT": r"Reciprocal Sq|RSQRT", "RESHAPE": r"RESHAPE|Static Reshape", "ELU": r"ELU",
}  # fmt: skip


def make_files(folder: Path) -> None:
    """Make the files of every network in every precision."""
    (folder / "files").mkdir(exist_ok=True)
    with TensorFlowProcess() as child:
        for path in sorted((folder / "models").glob("*.keras")):
            graph = load_model(path, child).graph
            for one in CANONICAL_PASSES:
                graph = graph if isinstance(one, RemoveDeadChannels) else run_pass(one, graph).graph
            fixed = run_pass(Simplify(), graph.with_batch(1)).graph
            rng = np.random.default_rng(0)
            shapes = {spec.name: [size or 1 for size in spec.shape][1:] for spec in graph.logical_inputs}
            samples = Samples({name: rng.normal(0, 1, (ROWS, *s)).astype(np.float32) for name, s in shapes.items()})
            (folder / "work" / path.stem).mkdir(parents=True, exist_ok=True)
            context = ConversionContext(graph, fixed, samples, child, folder / "work" / path.stem)
            for backend in (LiteRTBackend(context), OnnxCpuBackend(context)):
                recipes = [Recipe(precision) for precision in backend.precisions]
                layers = four_bit_default(backend.layers())
                if isinstance(backend, LiteRTBackend) and layers:
                    recipes += [Recipe(kind, int4_layers=layers) for kind in (STATIC, DYNAMIC, WEIGHTS)]
                for recipe in recipes:
                    _make(backend, recipe, folder / "files", path.stem)


def _make(backend: Any, recipe: Recipe, folder: Path, network: str) -> None:
    try:
        artifact = backend.build(recipe)
    except EdgekitError as error:
        print(f"{network} {recipe.id}: {error}", file=sys.stderr)
        return
    name = f"{network}~{recipe.precision}{'-w4' if recipe.int4_layers else ''}{Path(artifact.file).suffix}"
    (folder / name).write_bytes(artifact.data)


def count(folder: Path, core: str) -> None:
    """Count every file that was not counted, with its layers."""
    out = folder / f"counts-{core}.jsonl"
    done = {one["file"] for one in _lines(out)}
    left = [path for path in sorted((folder / "files").iterdir()) if path.name not in done]
    for start in range(0, len(left), FILES_A_PROCESS):
        with Measuring(core) as measuring, out.open("ab") as file:
            for path in left[start : start + FILES_A_PROCESS]:
                runtime = LITERT if path.suffix == ".tflite" else "onnxruntime"
                try:
                    found = measuring.measure(path, runtime, random_inputs(path, runtime), layers=True)
                except EdgekitError as error:
                    print(f"{path.name}: {error}", file=sys.stderr)
                    continue
                entry = {"file": path.name, "instructions": found.instructions, "layers": found.layers or ()}
                file.write(msgspec.json.encode(entry) + b"\n")
                file.flush()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def random_inputs(path: Path, runtime: str) -> dict[str, Array]:
    if runtime == LITERT:
        from edgekit.runtimes.litert import LiteRTRuntime as Adapter
    else:
        from edgekit.runtimes.onnx import OnnxRuntime as Adapter  # type: ignore[assignment]
    opened = Adapter(path)
    specs = opened.inputs
    opened.close()
    rng = np.random.default_rng(0)
    return {s.name: rng.normal(0, 3, [n or 1 for n in s.shape]).astype(s.dtype.numpy) for s in specs}


def collect(folder: Path) -> None:
    """Join the counts of all cores with the operators of each file, and write `COUNTS`.

    Earlier counts stay where the folder has none of that core, and of that file or one with the same operators.
    """
    found: dict[str, Counted] = {}
    for path in sorted(folder.glob("counts-*.jsonl")):
        core = path.stem.removeprefix("counts-")
        for line in _lines(path):
            file = folder / "files" / line["file"]
            if file.name not in found:
                litert_file = file.suffix == ".tflite"
                made = litert.operations(file.read_bytes()) if litert_file else _of_onnx(file)
                found[file.name] = Counted(file.name, made or [], {}, {})
            one = found[file.name]
            layers = [msgspec.convert(layer, Layer) for layer in line["layers"]]
            one.totals[core] = round(line["instructions"])
            one.layers[core] = of_litert(one, layers) if one.runtime == LITERT else of_onnx(one, layers)
    for before in load() if COUNTS.exists() else ():
        one = found.setdefault(before.file, before)
        if one.operations == before.operations:
            for core, total in before.totals.items():
                one.totals.setdefault(core, total)
                one.layers.setdefault(core, before.layers[core])
    kept = [msgspec.json.encode(found[name]) for name in sorted(found) if found[name].operations]
    COUNTS.write_bytes(b"[\n" + b",\n".join(kept) + b"\n]\n")


def _of_onnx(path: Path) -> list[Operation] | None:
    return onnx.operations(path, random_inputs(path, "onnxruntime"))


def of_onnx(one: Counted, layers: list[Layer]) -> list[float | None]:
    """The count of each operator; those of one kind are in the same order.

    Their sum is the total without an empty run.
    """
    counts: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        kind = onnx.SAME_KERNELS.get(layer.kernel, layer.kernel)
        counts[kind].append(round(layer.instructions - RUN_OF_ONNX_RUNTIME / len(layers)))
    return _in_order(one.operations, lambda operation: operation.kind.split()[0], counts)


def of_litert(one: Counted, layers: list[Layer]) -> list[float | None]:
    """The count of each operator that the profile shows.

    Operators of a network are in the order of its layers. Where many lie beside each other, XNNPACK takes another
    order; there the n-th smallest operator has the n-th smallest count.
    """
    counts: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        products = next((name for name, kernels in PRODUCTS.items() if re.match(kernels, layer.kernel)), None)
        if products is not None:
            counts[f"*{products}"].append(layer.instructions)
            continue
        for name, kernels in OTHERS.items():
            if re.match(kernels, layer.kernel):
                counts[name].append(layer.instructions)
                break

    def key(operation: Operation) -> str:
        word = operation.kind.split()[0]
        return f"*{word if word in PRODUCTS else ''}" if is_product(operation.kind) else word

    if one.network.startswith(LAYERS_ONLY):
        return _by_size(one.operations, key, counts)
    return _in_order(one.operations, key, counts)


def _in_order(operations: list[Operation], key: Any, counts: dict[str, list[float]]) -> list[float | None]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, operation in enumerate(operations):
        places[key(operation)].append(place)
    found: list[float | None] = [None] * len(operations)
    for name, these in places.items():
        if len(these) == len(counts.get(name, ())):
            for place, value in zip(these, counts[name], strict=True):
                found[place] = value
    return found


def _by_size(operations: list[Operation], key: Any, counts: dict[str, list[float]]) -> list[float | None]:
    order = sorted(range(len(operations)), key=lambda place: _size(operations[place]))
    ranked = _in_order([operations[place] for place in order], key, {name: sorted(v) for name, v in counts.items()})
    found: list[float | None] = [None] * len(operations)
    for place, value in zip(order, ranked, strict=True):
        found[place] = value
    return found


def _size(one: Operation) -> float:
    if not is_product(one.kind):
        return 100.0 * one.columns + one.depth
    padded = one.rows * -(-one.columns // 8) * 8
    return padded * (one.depth * one.taps + 12) * one.products + one.rows * one.taps * 8


def main() -> None:
    """Run one step."""
    step, folder, *core = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if step == "count":
        count(folder, core[0])
    else:
        {"files": make_files, "collect": collect}[step](folder)


if __name__ == "__main__":
    main()

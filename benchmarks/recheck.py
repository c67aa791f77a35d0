"""Ten bundles on other versions of their runtimes: `edgekit recheck` must find the versions that answer wrongly.

Two small networks are trained on scikit-learn's digits and converted with five recipes for LiteRT and for ONNX Runtime.
Each bundle is compared with its proof samples on six other versions. Known beforehand: tflite-runtime 2.14 answers
files with `int8-dynamic` dense layers wrongly, without an error.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.convert_models import digits
from benchmarks.results import Figure, publish
from converters import convert
from converters.recheck.packages import parse_wanted
from converters.recheck.recheck import Recheck, recheck
from edgekit.bundle.evidence import EQUAL, FAILED, GOOD, WITHIN, WORSE
from edgekit.bundle.recipe import DYNAMIC, STATIC, Recipe
from edgekit.cli.common.console import print_table
from edgekit.errors import EdgekitError

SEED = 11
TARGETS = {"litert": "raspberry-pi-4", "onnxruntime": "x86-64"}
RECIPES = {
    "litert": [("dense", "float32"), ("dense", STATIC), ("dense", DYNAMIC), ("conv", "float16"), ("conv", STATIC)],
    "onnxruntime": [("dense", "float32"), ("dense", STATIC), ("dense", DYNAMIC), ("conv", "float32"), ("conv", STATIC)],
}
VERSIONS = {
    "litert": (
        "ai-edge-litert==2.2.0", "ai-edge-litert==2.1.6", "ai-edge-litert==2.0.3", "ai-edge-litert==1.4.0",
        "ai-edge-litert==1.0.1", "tflite-runtime==2.14.0",
    ),
    "onnxruntime": (
        "onnxruntime==1.32.0", "onnxruntime==1.30.0", "onnxruntime==1.27.0", "onnxruntime==1.23.2",
        "onnxruntime==1.20.1", "onnxruntime==1.17.3",
    ),
}  # fmt: skip
KNOWN_WRONG = ("tflite-runtime==2.14.0", DYNAMIC)


def train(folder: Path) -> None:
    """Write ``dense.keras``, ``conv.keras`` and ``data.npz``."""
    import keras

    images, labels = digits()
    np.savez(folder / "data.npz", x=images, y=labels)
    layers = keras.layers
    bodies: dict[str, list[Any]] = {
        "dense": [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(64, activation="relu")],
        "conv": [layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 3, activation="relu"), layers.Flatten()],
    }
    for name, body in bodies.items():
        keras.utils.set_random_seed(SEED)
        model = keras.Sequential([keras.Input((8, 8, 1), name="x"), *body, layers.Dense(10, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(images, labels, epochs=15, verbose=0)
        model.save(folder / f"{name}.keras")


def bundles(folder: Path) -> dict[str, dict[str, Path]]:
    """Convert; gives the bundle by runtime and by network and recipe."""
    made: dict[str, dict[str, Path]] = {}
    for runtime, pairs in RECIPES.items():
        for network, precision in pairs:
            (report,) = convert(
                folder / f"{network}.keras",
                targets=(TARGETS[runtime],),
                data=folder / "data.npz",
                recipe=Recipe(precision=precision),
                runtime=runtime,
                accept_unproven=True,
                max_drop=0.05,
                name=f"{network}-{precision}-{runtime}",
                output=folder / "bundles",
            )
            made.setdefault(runtime, {})[f"{network} {precision}"] = Path(report.bundle)
    return made


def compare(made: dict[str, dict[str, Path]], data: Path) -> dict[tuple[str, str], Recheck | str]:
    """Every bundle on every version of its runtime: the report, or why the version cannot be had here."""
    found: dict[tuple[str, str], Recheck | str] = {}
    for runtime, some in made.items():
        for version in VERSIONS[runtime]:
            for name, bundle in some.items():
                print(f"{name} with {version}", file=sys.stderr)
                try:
                    found[name, version] = recheck(bundle, parse_wanted(version), data=data)
                except EdgekitError as error:
                    found[name, version] = str(error)
    return found


def figures(found: dict[tuple[str, str], Recheck | str]) -> list[Figure]:
    """The counts of outcomes, the wrong version that is known, and each comparison."""
    reports = {key: one for key, one in found.items() if isinstance(one, Recheck)}
    outcomes = Counter(one.outcome for one in reports.values())
    wrong = [one for (name, version), one in reports.items() if version == KNOWN_WRONG[0] and KNOWN_WRONG[1] in name]
    known = sum(one.outcome == WORSE for one in wrong) / len(wrong) if wrong else 0.0
    missing = sorted({version for (_, version), one in found.items() if isinstance(one, str)})
    listed = [
        Figure("comparisons", len(reports), "bundles and versions", note=f"not had: {', '.join(missing) or 'none'}"),
        *(Figure(outcome, outcomes[outcome], "comparisons") for outcome in (EQUAL, WITHIN, WORSE, FAILED)),
        Figure(
            "known wrong answers that were found", known, "share", reach=1.0, at_most=False,
            note="tflite-runtime 2.14 with int8-dynamic dense layers, from its answers alone",
        ),
    ]  # fmt: skip
    return listed + [_figure(name, version, one) for (name, version), one in reports.items()]


def _figure(name: str, version: str, found: Recheck) -> Figure:
    changed = found.changed
    note = f"{found.outcome}{'' if found.outcome in GOOD else ': ' + found.reasons[0][:160]}"
    return Figure(f"{name}, {version}", changed.value if changed else 1.0, "changed decisions", note=note)


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with contextlib.redirect_stdout(sys.stderr):
            train(folder)
            made = bundles(folder)
        found = compare(made, folder / "data.npz")
    rows = [
        (name, version, one.outcome if isinstance(one, Recheck) else "not had", "" if isinstance(one, Recheck) else one)
        for (name, version), one in found.items()
    ]
    print_table(("bundle", "version", "outcome", "why"), rows, err=True)
    publish("recheck", figures(found))

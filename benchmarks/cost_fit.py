"""Fits the estimate of instructions to counts: `python -m benchmarks.cost_fit` writes converters/cost/fitted.json.

``benchmarks/results/cost_counts.json`` has the operators of each file with their counts by layer and in total, on each
core; `benchmarks/cost_counts.py` made it. Each kind of operator is fitted to its layers by least absolute errors,
relative to the layer or to a hundredth of its file. What no layer shows (copies, slices, conversions between them) is
fitted to the totals; for ONNX Runtime also what a call of each kind costs. A file is judged by a fit without all
files of its network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scipy.optimize import nnls

from converters.cost.file_estimate import FITTED, Fit, Kind, instructions
from converters.cost.operations.operation import Block, Operation, is_product, other_terms, product_terms
from edgekit.runtimes import LITERT

COUNTS = Path(__file__).parent / "results" / "cost_counts.json"
LAYERS_ONLY = "micro-"  # networks of many layers of one kind beside each other; they are no networks to judge by
RUN_OF_ONNX_RUNTIME = 14_000.0  # instructions of an empty run, besides its nodes
BLOCKS: tuple[Block, ...] = tuple(itertools.product((1, 2, 3, 4, 6, 8), (4, 8, 16, 32), (1, 2, 4, 8)))
UNKNOWN = {LITERT: (300.0, 1.0, 0.5), "onnxruntime": (5000.0, 1.0, 1.0)}
CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
SMALL_SHARE = 0.01
ROUNDS = 6  # of reweighting towards least absolute errors
TYPICAL = 0.3  # share of the usual count of an operator's size below which its own count does not set its weight
CALL = 2000.0  # instructions of a call, about
CALLS_PRIOR = 0.03  # weight of what the layers show of calls, beside the totals
CALL_OF_PRODUCTS = 10  # place of the term of a call in `product_terms`
PRIOR = 0.02  # weight of UNKNOWN beside the files, for kinds that no layer shows


class Counted(msgspec.Struct, frozen=True):
    """The counts of one file.

    Attributes:
        file: ``network~recipe.tflite`` or ``.onnx``.
        operations: Its operators.
        totals: Instructions of one run, by core.
        layers: Instructions of each operator by core; None where the profile does not show it.
    """

    file: str
    operations: list[Operation]
    totals: dict[str, float]
    layers: dict[str, list[float | None]]

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.file.partition("~")[0]

    @property
    def runtime(self) -> str:
        """The runtime that runs it."""
        return LITERT if self.file.endswith(".tflite") else "onnxruntime"

    @property
    def precision(self) -> str:
        """The recipe's name."""
        return self.file.partition("~")[2].rpartition(".")[0]


def load(path: Path = COUNTS) -> list[Counted]:
    """The committed counts."""
    return msgspec.json.decode(path.read_bytes(), type=list[Counted])


class Fitter:
    """Fits one runtime on one core, with or without single networks."""

    def __init__(self, files: Iterable[Counted], runtime: str, core: str) -> None:
        self._core, self._runtime = core, runtime
        self.files = [one for one in files if one.runtime == runtime and core in one.totals]
        self._rows: dict[str, list[tuple[str, Operation, float, float]]] = {}
        for one in self.files:
            for operation, count in zip(one.operations, one.layers[core], strict=True):
                if count is not None:
                    row = (one.network, operation, max(count, 1.0), one.totals[core])
                    self._rows.setdefault(operation.kind, []).append(row)
        self._blocks = {kind: _best_block(rows) for kind, rows in self._rows.items() if is_product(kind)}

    def fit(self, without: str = "") -> Fit:
        """The fit; `without` a network."""
        kinds = {}
        for kind, rows in self._rows.items():
            kept = [row for row in rows if row[0] != without]
            if kept:
                block = self._blocks.get(kind, (1, 1, 1))
                kinds[kind] = Kind(tuple(_robust(_terms([row[1] for row in kept], block), kept)), block)
        fit = Fit(RUN_OF_ONNX_RUNTIME if self._runtime != LITERT else 0.0, kinds, UNKNOWN[self._runtime])
        files = [one for one in self.files if one.network != without and not one.network.startswith(LAYERS_ONLY)]
        return self._with_rest(fit, files) if self._runtime == LITERT else self._with_calls(fit, files)

    def _with_rest(self, fit: Fit, files: Sequence[Counted]) -> Fit:
        """The fit with the kinds that no layer shows, from what the totals have beyond the layers."""
        judged = files
        hidden = sorted({o.kind for one in judged for o in one.operations if o.kind not in fit.kinds})
        place = {kind: 1 + 3 * i for i, kind in enumerate(hidden)}
        terms, rest = np.zeros((len(judged), 1 + 3 * len(hidden))), np.zeros(len(judged))
        terms[:, 0] = 1.0
        for row, one in enumerate(judged):
            rest[row] = one.totals[self._core]
            for operation, count in zip(one.operations, one.layers[self._core], strict=True):
                if operation.kind in place:
                    at = place[operation.kind]
                    terms[row, at : at + 3] += other_terms(operation)
                else:
                    known = instructions(msgspec.structs.replace(fit, base=0.0), [operation])
                    rest[row] -= count if count is not None else known
        total = np.array([one.totals[self._core] for one in judged])
        weight = 1 / np.maximum(np.maximum(rest, 0.05 * total), 1.0)
        prior = np.array([2000.0, *UNKNOWN[LITERT] * len(hidden)])
        size = np.maximum(np.abs(terms * weight[:, None]).max(axis=0), 1e-9)
        system = np.vstack([terms * weight[:, None], np.diag(PRIOR * size)])
        found = _non_negative(system, np.concatenate([np.maximum(rest, 1.0) * weight, PRIOR * size * prior]))
        kinds = {**fit.kinds, **{kind: Kind(tuple(map(float, found[at : at + 3]))) for kind, at in place.items()}}
        return msgspec.structs.replace(fit, base=float(found[0]), kinds=kinds)

    def _with_calls(self, fit: Fit, files: Sequence[Counted]) -> Fit:
        """The fit with the work of a run and of a call of each kind from the totals.

        ONNX Runtime's profile has its own work in each node's time, which differs by thousands of instructions and is
        taken off evenly. So the layers show how the work grows with the sizes, and the totals what a call costs.
        """
        names = sorted(fit.kinds)
        place = {name: at for at, name in enumerate(names, 1)}
        totals = np.array([one.totals[self._core] for one in files])
        calls, rest = np.zeros((len(files), 1 + len(names))), totals.copy()
        calls[:, 0] = 1.0
        for row, one in enumerate(files):
            rest[row] += fit.base - instructions(fit, one.operations)
            for operation in one.operations:
                if operation.kind in place:
                    calls[row, place[operation.kind]] += 1.0
                    rest[row] += fit.kinds[operation.kind].factors[_call(operation.kind)]
        before = np.array([fit.base, *(fit.kinds[name].factors[_call(name)] for name in names)])
        error, found = np.full(len(files), 1.0), before
        for _ in range(ROUNDS):
            share = 1.0 / totals / np.sqrt(np.maximum(error, 0.01))
            system = np.vstack([calls * share[:, None], np.diag(CALLS_PRIOR / np.maximum(before, CALL))])
            found = _non_negative(
                system, np.concatenate([rest * share, CALLS_PRIOR * before / np.maximum(before, CALL)])
            )
            error = np.abs(calls @ found - rest) / totals
        kinds = {}
        for name in names:
            kind, at = fit.kinds[name], _call(name)
            factors = (*kind.factors[:at], float(f"{found[place[name]]:.5g}"), *kind.factors[at + 1 :])
            kinds[name] = msgspec.structs.replace(kind, factors=factors)
        return msgspec.structs.replace(fit, base=float(f"{found[0]:.5g}"), kinds=kinds)

    def errors(self) -> dict[str, float]:
        """The error of each file as a share of its count, each with all files of its network left out of the fit."""
        found = {}
        for network in sorted({one.network for one in self.files if not one.network.startswith(LAYERS_ONLY)}):
            fit = self.fit(network)
            for one in self.files:
                if one.network == network:
                    found[one.file] = instructions(fit, one.operations) / one.totals[self._core] - 1.0
        return found


def _call(kind: str) -> int:
    """The place of the factor of a call among the factors of a kind."""
    return CALL_OF_PRODUCTS if is_product(kind) else 0


def _terms(operations: Sequence[Operation], block: Block) -> Any:
    return np.array([product_terms(one, block) if is_product(one.kind) else other_terms(one) for one in operations])


def _best_block(rows: Sequence[tuple[str, Operation, float, float]]) -> Block:
    """The block with the smallest squares of relative errors."""
    counts = np.array([row[2] for row in rows])

    def error(block: Block) -> float:
        terms = _terms([row[1] for row in rows], block)
        found = _non_negative(terms / counts[:, None], np.ones(len(rows)))
        return float(np.mean(np.minimum(np.abs(terms @ found / counts - 1), 1) ** 2)) * (1 + 1e-3 * sum(block))

    return min(BLOCKS, key=error)


def _robust(terms: Any, rows: Sequence[tuple[str, Operation, float, float]]) -> Any:
    """Non-negative factors with least absolute errors, relative to a layer or to a hundredth of its file."""
    counts, totals = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    weight = np.array([0.15 if row[0].startswith(LAYERS_ONLY) else 1.0 for row in rows])
    # An operator that took far less than others of its size, in a kernel of its own, must not pull the fit to it.
    sizes = np.array([_size(row[1]) for row in rows])
    usual = TYPICAL * np.median(counts / sizes) * sizes
    scale = np.maximum(np.maximum(counts, usual), SMALL_SHARE * np.minimum(totals, 50 * counts.mean()))
    error = np.ones(len(rows))
    found = np.zeros(terms.shape[1])
    for _ in range(ROUNDS):
        share = weight / scale / np.sqrt(np.maximum(error, 0.02))
        found = _non_negative(terms * share[:, None], counts * share)
        error = np.abs(terms @ found - counts) / scale
    return [float(f"{one:.5g}") for one in found]


def _size(one: Operation) -> float:
    """Multiplications, or elements that are written and read."""
    if is_product(one.kind):
        return float(max(one.rows * one.columns * one.depth * one.taps * one.products, 1))
    return float(max(one.columns + one.depth, 1))


def _non_negative(system: Any, values: Any) -> Any:
    size = np.linalg.norm(system, axis=0)
    size[size == 0] = 1.0
    found, _ = nnls(system / size, values, maxiter=50_000)
    return found / size


def main() -> None:
    """Fit every runtime on every core, print the errors, and write the fits."""
    files = load()
    fits: dict[str, dict[str, Fit]] = {}
    for runtime in UNKNOWN:
        for core in CORES:
            fitter = Fitter(files, runtime, core)
            errors = fitter.errors()
            shares = np.abs(list(errors.values()))
            by_precision: dict[str, list[float]] = {}
            for one in fitter.files:
                if one.file in errors:
                    by_precision.setdefault(one.precision, []).append(abs(errors[one.file]))
            fits.setdefault(runtime, {})[core] = msgspec.structs.replace(
                fitter.fit(),
                errors={name: round(float(np.median(found)), 4) for name, found in sorted(by_precision.items())},
                files=len(errors),
                networks=len({name.partition("~")[0] for name in errors}),
                median=round(float(np.median(shares)), 4),
                within=round(float(np.quantile(shares, 0.95)), 4),
                worst=round(float(shares.max()), 4),
            )
            print(f"{runtime} {core}: {len(errors)} files, median {np.median(shares):.1%}, ", end="")
            print(f"95 % within {np.quantile(shares, 0.95):.1%}, worst {shares.max():.1%}", flush=True)
            for name in sorted(errors, key=lambda name: -abs(errors[name]))[:5]:
                print(f"    {errors[name]:+.1%} {name}")
    FITTED.write_bytes(msgspec.json.encode(fits) + b"\n")


if __name__ == "__main__":
    main()

"""Estimates the instructions of an artifact on an ARM core from the operators in its file.

The figures in ``fitted.json`` come from instruction counts of whole networks and of their operators on emulated cores:
`benchmarks/cost_fit.py` makes the file and says how. docs/limits.md has the errors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from converters.cost.emulated.cores import CORES
from converters.cost.operations.operation import Block, Operation, is_product, other_terms, product_terms
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile

FITTED = Path(__file__).with_name("fitted.json")


class Kind(msgspec.Struct, frozen=True):
    """The fitted instructions of one kind of operators.

    Attributes:
        factors: One for each term of `product_terms` or `other_terms`.
        block: The block of `product_terms`.
    """

    factors: tuple[float, ...]
    block: Block = (1, 1, 1)


class Fit(msgspec.Struct, frozen=True):
    """The fit of one runtime on one core.

    Attributes:
        base: Instructions of a run besides its operators.
        kinds: By kind of operator.
        unknown: Factors of `other_terms` for kinds that were not counted.
        errors: Median error by precision, as a share, of files whose network was left out of the fit.
        files, networks: How many were counted, without those of single layers.
        median, within, worst: Errors of these files, each with all files of its network left out: half, 95 of 100, and
            all are at most so large.
    """

    base: float
    kinds: dict[str, Kind]
    unknown: tuple[float, ...]
    errors: dict[str, float] = {}
    files: int = 0
    networks: int = 0
    median: float = 0.0
    within: float = 0.0
    worst: float = 0.0

    def error(self, recipe: Recipe) -> float:
        """The median error of files of this precision, as a share."""
        name = recipe.precision + ("-w4" if recipe.int4_layers else "")
        return self.errors.get(name, self.median)


def instructions(fit: Fit, operations: Sequence[Operation]) -> float:
    """The instructions of one run."""
    return fit.base + sum(_of_one(fit, one) for one in operations)


def fit_of(runtime: str, core: str) -> Fit | None:
    """The fit of a runtime on a core; None where none was made."""
    return _fits().get(runtime, {}).get(core)


def core_of_target(profile: TargetProfile) -> str:
    """The core whose instructions are those of a target's devices; empty where none is emulated."""
    if profile.arch != "aarch64" or profile.accelerator or profile.speed:
        return ""
    core = profile.core or ("cortex-a76" if "asimddp" in profile.cpu_features else "cortex-a72")
    return core if core in CORES else ""


@functools.cache
def _fits() -> Mapping[str, Mapping[str, Fit]]:
    return msgspec.json.decode(FITTED.read_bytes(), type=dict[str, dict[str, Fit]])


def _of_one(fit: Fit, one: Operation) -> float:
    kind = fit.kinds.get(one.kind)
    if not is_product(one.kind):
        factors = kind.factors if kind else fit.unknown
        return sum(a * b for a, b in zip(factors, other_terms(one), strict=True))
    kind = kind or fit.kinds[_nearest(one.kind, fit)]
    return sum(a * b for a, b in zip(kind.factors, product_terms(one, kind.block), strict=True))


def _nearest(kind: str, fit: Fit) -> str:
    """The counted kind that is most like one that was not: the same operator, then the same types, then any."""
    products = sorted(filter(is_product, fit.kinds))
    word, types = kind.rsplit(" ", 1)
    return max(products, key=lambda one: (one.rsplit(" ", 1)[0] == word, one.rsplit(" ", 1)[1] == types))

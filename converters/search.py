"""Which candidates to make."""

from __future__ import annotations

from edgekit.recipe import DYNAMIC, STATIC, Recipe
from edgekit.targets import TargetProfile


def candidates(profile: TargetProfile, precisions: tuple[str, ...], *, with_data: bool, runtime: str) -> list[Recipe]:
    """The kinds that a target runs; without data only those that quantize no activation."""
    symmetric = profile.int8_symmetric and runtime == "onnxruntime"
    return [
        Recipe(precision=precision, symmetric=symmetric and precision == STATIC)
        for precision in precisions
        if with_data or precision not in (STATIC, DYNAMIC)
    ]

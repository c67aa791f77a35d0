"""Which candidates to make."""

from __future__ import annotations

from edgekit.recipe import STATIC, Recipe
from edgekit.targets import TargetProfile


def candidates(profile: TargetProfile, precisions: tuple[str, ...], *, with_data: bool, runtime: str) -> list[Recipe]:
    """The recipes worth a try on a target; int8 needs data to calibrate."""
    symmetric = profile.int8_symmetric and runtime == "onnxruntime"
    return [
        Recipe(precision=precision, symmetric=symmetric and precision == STATIC)
        for precision in precisions
        if with_data or precision != STATIC
    ]

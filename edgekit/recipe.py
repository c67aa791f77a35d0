"""Recipe: the choices of one conversion as data, validated before work starts and saved in the bundle."""

from __future__ import annotations

import difflib

import msgspec

from edgekit.errors import RecipeError

PRECISIONS = ("float32", "float16", "int8")
RANGES = ("minmax", "percentile", "entropy", "mse")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to the canonical float graph to get one candidate.

    Attributes:
        precision: ``float32``, ``float16`` (weights, and activations where the runtime computes in half), or ``int8``
            (static: weights and activations).
        per_channel: int8 weights have one scale per output channel.
        symmetric: int8 activations have zero point 0.
        ranges: How activation ranges are read from the calibration.
        float_layers: Names of layers that stay float in an int8 candidate.
    """

    precision: str = "float32"
    per_channel: bool = True
    symmetric: bool = False
    ranges: str = "minmax"
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RecipeError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.ranges not in RANGES:
            raise RecipeError(f"ranges is {self.ranges!r}, expected one of {', '.join(RANGES)}")

    @property
    def id(self) -> str:
        """Short and stable, for reports: ``float32``, ``int8-symmetric`` ..."""
        if self.precision != "int8":
            return self.precision
        parts = ["int8"]
        if not self.per_channel:
            parts.append("per-tensor")
        if self.symmetric:
            parts.append("symmetric")
        if self.ranges != "minmax":
            parts.append(self.ranges)
        if self.float_layers:
            parts.append(f"float{len(self.float_layers)}")
        return "-".join(parts)


PRESETS = {name: Recipe(precision=name) for name in PRECISIONS}


def preset(name: str) -> Recipe:
    """The preset called `name`.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise RecipeError(f"there is no recipe preset {name!r}", advice=f"{hint}Presets: {', '.join(PRESETS)}.")

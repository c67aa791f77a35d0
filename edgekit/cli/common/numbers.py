"""Types of options whose value is a number: finite, and in a range that every later step can work with."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from edgekit.bounds import MAX_INTEGER, MAX_ROW, MAX_SECONDS

ANY = 1e15  # larger numbers cannot be printed and stored with their digits
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd])")


class Number(click.FloatRange):
    """A finite number, by default of any size that can still be printed and stored.

    Args:
        min, max: The bounds, both included.
    """

    def __init__(self, min: float = -ANY, max: float = ANY) -> None:
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; NaN is no number, although every comparison with it is false."""
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if not -ANY <= number <= ANY:
            self.fail(f"{value} is not in the range {-ANY:g} to {ANY:g}.", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        """The range for the help text; without one, nothing."""
        return "" if (self.min, self.max) == (-ANY, ANY) else super()._describe_range()


class Whole(click.IntRange):
    """A whole number.

    Args:
        min, max: The bounds, both included.
    """

    def __init__(self, min: int = 0, max: int = MAX_INTEGER) -> None:
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a very long one is out of range, and not a fault of the parser."""
        if isinstance(value, str) and len(value.strip()) > 40:
            self.fail(
                f"a number of {len(value.strip())} digits is not in the range {self._describe_range()}.", param, ctx
            )
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        """The range; without the highest number that JSON can hold, which would tell a reader nothing."""
        return f"x>={self.min}" if self.max == MAX_INTEGER else super()._describe_range()


class Seconds(click.ParamType[float]):
    """A duration in seconds, or with a unit: ``90``, ``90s``, ``15m``, ``2h``, ``7d``.

    Args:
        min, max: The bounds in seconds, both included.
    """

    name = "duration"

    def __init__(self, min: float = 0.001, max: float = MAX_SECONDS) -> None:
        self.min, self.max = min, max

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The duration in seconds."""
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        try:
            seconds = float(match[1]) * _UNITS[match[2]] if match else float(value)
        except ValueError:
            self.fail(f"{value!r} is no duration; write seconds, or for example 90s, 15m, 2h or 7d.", param, ctx)
        if not self.min <= seconds <= self.max:
            self.fail(f"{value} is not in the range {self.min:g} to {self.max:g} seconds.", param, ctx)
        return seconds


ROLLOUT = Whole(1, MAX_ROW)  # the id of a rollout
SHARE = Number(0, 1)

"""The pruning of recipes: the text that says which channels a layer keeps, as in ``0-3,7``, and its checks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgekit.bundle.recipe import Recipe
from edgekit.errors import RecipeError

LARGEST_SEED = 2**32 - 1  # of numpy and TensorFlow
MOST_CHANNELS = 1 << 20  # of one layer; a larger number is a slip, and its range would fill the memory


def ranges_text(numbers: Sequence[int]) -> str:
    """Rising numbers as text: ``0-3,7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def numbers_of(text: str) -> list[int]:
    """The numbers of ``0-3,7``.

    Raises:
        ValueError: The text has another form, its numbers do not rise, or one is `MOST_CHANNELS` or more.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if end < start or (numbers and start <= numbers[-1]) or end >= MOST_CHANNELS:
            raise ValueError(f"{part} in {text}")
        numbers += range(start, end + 1)
    return numbers


def numbers_by_layer(kept: Sequence[tuple[str, str]]) -> Mapping[str, list[int]]:
    """The channels that each layer keeps, by its name.

    Raises:
        RecipeError: A layer is named twice, or its text is not one of `numbers_of`.
    """
    found: dict[str, list[int]] = {}
    for name, text in kept:
        if name in found:
            raise RecipeError(f"kept names layer {name} twice", advice="Name each layer once, with all its channels.")
        try:
            found[name] = numbers_of(text)
        except ValueError as error:
            raise RecipeError(
                f"kept of layer {name} is {text!r}, expected rising channels below {MOST_CHANNELS}, as in 0-3,7"
            ) from error
    return found


def check_pruning(recipe: Recipe) -> None:
    """Check what the user wrote of the pruning of `recipe`, beyond its form.

    Bundles are not checked like this: what an older edgekit wrote stays readable.

    Raises:
        RecipeError: `kept` is not as in `numbers_by_layer`, or `share` or `seed` is out of its range.
    """
    numbers_by_layer(recipe.kept or ())
    if recipe.share is not msgspec.UNSET and not 0.0 < recipe.share < 1.0:
        raise RecipeError(f"share is {recipe.share}, expected more than 0 and less than 1")
    if not 0 <= (recipe.seed or 0) <= LARGEST_SEED:
        raise RecipeError(f"seed is {recipe.seed}, expected 0 to {LARGEST_SEED}")

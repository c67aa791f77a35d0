"""Names and numbers as people read them: recipes, sizes, shares. Used by reports, tables, explanations and errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from edgekit.bundle.recipe import DYNAMIC, STATIC, WEIGHTS, Recipe

_PRECISION_TITLES = {STATIC: "int8", DYNAMIC: "int8 dynamic", WEIGHTS: "int8 weights"}
_RANGE_TITLES = {"percentile": "percentile ranges", "entropy": "entropy ranges", "mse": "ranges by squared error"}
_ID_CHARACTER = r"[A-Za-z0-9_.-]"


def title(recipe: Recipe) -> str:
    """The recipe in words, for example ``int8 dynamic, 15 layers at 4 bits, GPTQ``.

    Recipes that differ only in which layers they name have the same title; their ids differ.
    """
    parts = [_PRECISION_TITLES.get(recipe.precision, recipe.precision)]
    if recipe.int4_layers:
        parts.append(f"{_layers(recipe.int4_layers)} at 4 bits")
    if recipe.rounding != "nearest":
        parts.append(recipe.rounding.upper())
    if recipe.float_layers:
        parts.append(f"{_layers(recipe.float_layers)} in float")
    if not recipe.per_channel:
        parts.append("one scale per tensor")
    if recipe.symmetric:
        parts.append("symmetric")
    if recipe.ranges != "minmax":
        parts.append(_RANGE_TITLES.get(recipe.ranges, f"{recipe.ranges} ranges"))
    if recipe.equalize:
        parts.append("channels equalized")
    if recipe.correct_bias:
        parts.append("biases corrected")
    if recipe.lossy:
        share = f" to {recipe.share:.0%}" if recipe.share is not msgspec.UNSET else ""
        parts.append(f"pruned{share}")
        if recipe.own:
            parts.append("your training loop")
    elif recipe.pruned:
        parts.append("dead channels removed")
    if recipe.direct:
        parts.append("direct route")
    return ", ".join(parts)


def titles(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Title by id, different for each recipe: equal titles are numbered in the given order."""
    by_id = {recipe.id: title(recipe) for recipe in recipes}
    count, used = Counter(by_id.values()), Counter[str]()
    named = {}
    for name, text in by_id.items():
        used[text] += 1
        named[name] = f"{text} ({used[text]})" if count[text] > 1 else text
    return named


def titles_with_ids(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Title by id, with the id behind it in brackets where it is another."""
    return {name: text if text == name else f"{text} [{name}]" for name, text in titles(recipes).items()}


def in_words(text: str, names: Mapping[str, str], *, chosen: str = "") -> str:
    """`text` with the ids of recipes replaced by their titles, in quotation marks where a title has several words.

    Args:
        text: A reason that names other candidates by id.
        names: Title by id, as `titles` returns.
        chosen: Id that is called "the chosen one"; empty for none.
    """
    if not names:
        return text
    ids = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"(?<!{_ID_CHARACTER})({ids})(?!{_ID_CHARACTER})"
    return re.sub(pattern, lambda found: "the chosen one" if found[1] == chosen else _quoted(names[found[1]]), text)


def size_text(count: int) -> str:
    """A number of bytes: ``812 B``, ``24.1 KiB``, ``103 KiB``, ``12.4 MiB``."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count} B"


def figure_text(value: float) -> str:
    """A number with three significant digits; thousands are separated."""
    if abs(value) >= 999.5:
        digits = len(f"{abs(value):.0f}") - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def origin_text(kind: str) -> str:
    """Where a cost comes from, by its kind: ``estimate``, ``count`` or ``measurement``."""
    return {"instructions": "count", "measured": "measurement"}.get(kind, kind)


def share_text(part: float, whole: float) -> str:
    """`part` as a share of `whole`: ``27 %``, ``2.4 %``; a dash where `whole` is 0."""
    if not whole:
        return "-"
    percent = 100.0 * part / whole
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def _layers(names: tuple[str, ...]) -> str:
    count = len(set(names))
    return f"{count} layer{'s' if count != 1 else ''}"


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text

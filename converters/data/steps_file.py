"""Writes steps after a model as a TOML file that `--preprocess` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit.preprocess.after import AfterStep


def write_steps(path: Path, after: Sequence[AfterStep]) -> None:
    """Write steps after the model; keys with their default values are left out.

    Args:
        path: The file; an older one is replaced.
        after: The steps in order.
    """
    tables = []
    for step in after:
        values = msgspec.to_builtins(step)
        defaults = msgspec.to_builtins(type(step)(**_required(step)))
        lines = [f"{key} = {_text(value)}" for key, value in values.items() if key == "do" or value != defaults[key]]
        lines += [f"{key} = {_text(values[key])}" for key in _required(step)]
        tables.append("\n".join(["[[after]]", *dict.fromkeys(lines)]))
    path.write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def _required(step: AfterStep) -> dict[str, Any]:
    fields = msgspec.structs.fields(type(step))
    return {field.name: getattr(step, field.name) for field in fields if field.required}


def _text(value: Any) -> str:
    """A value in TOML, whose strings, numbers and lists are written as in JSON."""
    return json.dumps(value, ensure_ascii=False)

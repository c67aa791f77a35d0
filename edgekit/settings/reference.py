"""Describes settings classes for the settings reference: one entry a key, read from the class itself."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

_UNITS = {  # by the last words of a name; the first match counts
    "bytes_per_second": "bytes per second",
    "seconds": "seconds",
    "hours": "hours",
    "days": "days",
    "ms": "milliseconds",
    "bytes": "bytes",
    "mib": "MiB",
}
_NOT_UNITS = ("quiet_hours",)  # text that happens to end like a unit
_BOUNDS = ("gt", "ge", "le")  # the bounds of Meta that settings use
_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_PLURALS = {str: "texts", Path: "paths"}


class SettingDoc(NamedTuple):
    """One key of a settings class.

    Attributes:
        name: The key.
        type: Type and bounds, in words.
        unit: Unit of a number; empty for other types.
        required: True when the key has no default.
        default: The default as TOML; empty when the key is required or unset by default.
        description: Meaning, in sentences.
    """

    name: str
    type: str
    unit: str
    required: bool
    default: str
    description: str


def describe_settings(kind: type[msgspec.Struct]) -> list[SettingDoc]:
    """Every key of a settings class, in the order of the class.

    Raises:
        TypeError: a field has no description, or a number has no unit. A unit comes from the end of the name
            (`heartbeat_seconds`) or from ``extra={"unit": ...}``, never from both.
    """
    return [_describe(kind, field) for field in msgspec.structs.fields(kind)]


def _describe(kind: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> SettingDoc:
    metas = list(_metas(field.type))
    description = next((meta.description for meta in metas if meta.description), "")
    if not description:
        raise TypeError(f"{kind.__name__}.{field.name} has no description; add Meta(description=...) to its type")
    required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return SettingDoc(
        name=field.name,
        type=_type_text(field.type),
        unit=_unit(kind, field.name, field.type, metas),
        required=required,
        default="" if required or default is None else _toml(default),
        description=description,
    )


def _unit(kind: type[msgspec.Struct], name: str, declared: Any, metas: list[msgspec.Meta]) -> str:
    given = next((meta.extra["unit"] for meta in metas if meta.extra and "unit" in meta.extra), "")
    named = "" if name in _NOT_UNITS else next((unit for end, unit in _UNITS.items() if name.endswith("_" + end)), "")
    number = not {int, float}.isdisjoint(_plain_types(declared))
    if number != bool(given or named) or (given and named):
        raise TypeError(
            f"{kind.__name__}.{name}: a number has one unit, from its name or from extra={{'unit': ...}}, and other "
            f"types have none; found {named!r} in the name and {given!r} in extra"
        )
    return given or named


def _metas(declared: Any) -> Iterator[msgspec.Meta]:
    """Every Meta of a type, the outermost first."""
    if get_origin(declared) is Annotated:
        inner, *metas = get_args(declared)
        yield from reversed(metas)  # a nested Annotated is flattened, the innermost first
        yield from _metas(inner)
    elif _is_union(declared):
        for one in get_args(declared):
            yield from _metas(one)


def _plain_types(declared: Any) -> Iterator[Any]:
    if get_origin(declared) is Annotated:
        yield from _plain_types(get_args(declared)[0])
    elif _is_union(declared):
        for one in get_args(declared):
            yield from _plain_types(one)
    else:
        yield declared


def _type_text(declared: Any, *metas: msgspec.Meta) -> str:
    if get_origin(declared) is Annotated:
        inner, *more = get_args(declared)
        return _type_text(inner, *metas, *more)
    if _is_union(declared):
        return " or ".join(_type_text(one, *metas) for one in get_args(declared) if one is not type(None))
    if get_origin(declared) is Literal:
        return " or ".join(f'"{value}"' for value in get_args(declared))
    if get_origin(declared) is tuple:
        inner = get_args(declared)[0]
        return f"list of {_PLURALS[inner]}" if inner in _PLURALS else f"list of {_type_text(inner)}"
    if get_origin(declared) is dict:
        return "tables by name"
    return _TYPES[declared] + _bounds(metas)


def _bounds(metas: tuple[msgspec.Meta, ...]) -> str:
    above, low, high = (
        next((value for value in (getattr(meta, key) for meta in metas) if value is not None), None) for key in _BOUNDS
    )
    if above is not None:
        return f" above {above}" + (f" up to {high:g}" if high is not None else "")
    if low is not None:
        return f" from {low} to {high}" if high is not None else f", {low} or more"
    return ""


def _is_union(declared: Any) -> bool:
    return get_origin(declared) in (Union, types.UnionType)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return "{}" if isinstance(value, dict) else repr(value)

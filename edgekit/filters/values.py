"""A parsed filter as values. Pure rules: what each field may be compared with."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

PLAIN_FIELDS = ("name", "target", "seen")
INDEXED_FIELDS = ("label", "fact")  # label.KEY, fact.KEY
MODEL_FIELDS = ("version", "digest", "state", "outcome")  # version(MODEL)
FLAGS = ("online", "offline", "waiting")
GROUP = "group"
NONE = "none"
ORDER = ("<", "<=", ">", ">=")
ORDERED_FIELDS = ("version", "fact", "seen")


class Field(msgspec.Struct, frozen=True):
    """A compared field: `kind` is in PLAIN_FIELDS, INDEXED_FIELDS or MODEL_FIELDS; `key` is a label or a model."""

    kind: str
    key: str = ""


class Compare(msgspec.Struct, frozen=True):
    """One comparison; `operator` is ``==``, ``!=`` or one of ORDER. The value None stands for no value at all."""

    field: Field
    operator: str
    value: str | None


class OneOf(msgspec.Struct, frozen=True):
    """The field has one of these values."""

    field: Field
    values: tuple[str | None, ...]


class Flag(msgspec.Struct, frozen=True):
    """A word of FLAGS holds for the device."""

    name: str


class Group(msgspec.Struct, frozen=True):
    """The device is in a saved group."""

    name: str


class Not(msgspec.Struct, frozen=True):
    """The filter does not hold."""

    filter: Filter


class All(msgspec.Struct, frozen=True):
    """All of these hold."""

    filters: tuple[Filter, ...]


class Any(msgspec.Struct, frozen=True):
    """At least one of these holds."""

    filters: tuple[Filter, ...]


Filter: TypeAlias = "Compare | OneOf | Flag | Group | Not | All | Any"


def groups_of(found: Filter) -> set[str]:
    """Names of the saved groups that a filter uses itself."""
    if isinstance(found, Group):
        return {found.name}
    if isinstance(found, Not):
        return groups_of(found.filter)
    if isinstance(found, All | Any):
        return {name for one in found.filters for name in groups_of(one)}
    return set()


def fields_of(found: Filter) -> list[tuple[Field, tuple[str, ...]]]:
    """Every field of a filter with the values that it is compared with."""
    if isinstance(found, Compare):
        return [(found.field, (found.value,) if found.value is not None else ())]
    if isinstance(found, OneOf):
        return [(found.field, tuple(value for value in found.values if value is not None))]
    if isinstance(found, Not):
        return fields_of(found.filter)
    if isinstance(found, All | Any):
        return [pair for one in found.filters for pair in fields_of(one)]
    return []

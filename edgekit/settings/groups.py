"""Copies settings into the value object of one part, field by field, by their names."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

MIB = 2**20

G = TypeVar("G", bound=msgspec.Struct)


def settings_group(kind: type[G], settings: msgspec.Struct, *, prefix: str = "", **values: Any) -> G:
    """A value object whose fields are filled from the settings of the same names.

    Args:
        kind: Class of the value object.
        settings: AgentSettings or ControlSettings.
        prefix: Put before each field's name to find the setting (``probation_`` finds `probation_requests`).
        values: Fields that no setting of that name gives.

    Returns:
        The object. A field ``*_bytes`` is also filled from a setting ``*_mib``. A field without a setting and without a
        value keeps its default.
    """
    known = settings.__struct_fields__
    for field in kind.__struct_fields__:
        name = prefix + field
        mib = name.removesuffix("_bytes") + "_mib"
        if field in values:
            continue
        if name in known:
            values[field] = getattr(settings, name)
        elif name.endswith("_bytes") and mib in known:
            values[field] = getattr(settings, mib) * MIB
    return kind(**values)

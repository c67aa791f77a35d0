"""The request parameters of edgekit's own: their names begin with ``edgekit_``, and an unknown one is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.errors import DataError

ROUTE_PARAMETER = "edgekit_route"
_PREFIX = "edgekit_"


def has_own(parameters: Mapping[str, Any], known: Sequence[str]) -> bool:
    """True where a request has parameters of edgekit's own; others are left to the protocol.

    Args:
        parameters: Of the request.
        known: The names that this server takes.

    Raises:
        DataError: such a parameter is unknown.
    """
    ours = [name for name in parameters if name.startswith(_PREFIX)]
    unknown = [name for name in ours if name not in known]
    if unknown:
        raise DataError(f"parameter {unknown[0]!r} is unknown, expected {' or '.join(known)}")
    return bool(ours)

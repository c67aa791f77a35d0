"""Filters that select devices, such as ``target == raspberry-pi-4 and version(digits) < 2.0``: grammar and values.

A filter is parsed here and compiled to SQL in `edgekit.state.fleet.filters`. No filter is ever evaluated in Python.
"""

from edgekit.filters.parsing import parse_filter
from edgekit.filters.values import All, Any, Compare, Filter, Flag, Group, Not, OneOf

__all__ = ["All", "Any", "Compare", "Filter", "Flag", "Group", "Not", "OneOf", "parse_filter"]

"""Sphinx directives that draw reference pages from the code: `settings` and `metrics`."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from edgekit.serving.http.metrics import METRICS
from edgekit.settings.reference import describe_settings


class Settings(SphinxDirective):
    """A table of every key of a settings class; the argument is ``module:Class``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].partition(":")
        rows = []
        for key in describe_settings(getattr(importlib.import_module(module), name)):
            default = "required" if key.required else f"`{key.default}`" if key.default else "unset"
            rows.append([f"`{key.name}`", key.type, key.unit, default, key.description])
        return [_table(["key", "type", "unit", "default", "meaning"], [20, 14, 10, 16, 40], rows)]


class Metrics(SphinxDirective):
    """A table of every metric of /metrics."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows = [[f"`{one.name}`", one.kind, ", ".join(one.labels), one.help] for one in METRICS]
        return [_table(["metric", "type", "labels", "meaning"], [36, 10, 10, 44], rows)]


def _table(head: list[str], widths: list[int], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["reference"])


def _row(cells: list[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *_text(cell))) for cell in cells))


def _text(cell: str) -> list[nodes.Node]:
    if len(cell) > 1 and cell[0] == cell[-1] == "`":
        return [nodes.literal("", cell[1:-1])]
    return [nodes.Text(cell)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("metrics", Metrics)
    return {"parallel_read_safe": True}

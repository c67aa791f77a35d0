"""Sphinx directives that draw reference pages from the code: `settings` and `metrics`."""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from edgekit.settings.reference import describe_settings


class Settings(SphinxDirective):
    """A table of every key of a settings class; the argument is ``module:Class``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].partition(":")
        rows = []
        for key in describe_settings(getattr(importlib.import_module(module), name)):
            unit = f" ({key.unit})" if key.unit else ""
            default = "required" if key.required else key.default or "unset"
            rows.append([f"`{key.name}`", f"{key.type}{unit}", f"`{default}`", key.description])
        return [_table(["key", "type", "default", "meaning"], [22, 14, 16, 48], rows)]


class Metrics(SphinxDirective):
    """A table of every metric of /metrics; the argument is ``module:TABLE``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].partition(":")
        table = getattr(importlib.import_module(module), name)
        rows = [[f"`{one.name}`", one.kind, ", ".join(one.labels), one.help] for one in table]
        return [_table(["metric", "type", "labels", "meaning"], [38, 9, 9, 44], rows)]


def _table(head: list[str], widths: list[int], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["reference", "colwidths-given"])


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

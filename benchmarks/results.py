"""Figures of one benchmark: printed as a table, written as JSON, and compared with their expected values."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

from edgekit.cli.common.console import print_table
from edgekit.versions import versions_of

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("ai-edge-litert", "numpy", "onnxruntime", "uvicorn", "edgekit")


class Figure(msgspec.Struct, frozen=True):
    """One measured figure.

    Attributes:
        figure: Name of the figure.
        value, unit: The result.
        reach: The limit that the value must keep; None without a limit.
        at_most: True if `reach` is a maximum; False if it is a minimum.
        peers: Values of other tools, measured in the same run, by name.
        note: How the value was measured, in a few words.
    """

    figure: str
    value: float
    unit: str
    reach: float | None = None
    at_most: bool = True
    peers: dict[str, float] = {}
    note: str = ""

    @property
    def met(self) -> bool | None:
        """True if the value keeps the limit `reach`; None without a limit."""
        if self.reach is None:
            return None
        return self.value <= self.reach if self.at_most else self.value >= self.reach


def publish(name: str, figures: list[Figure]) -> None:
    """Print the figures and write ``benchmarks/results/<name>.json``."""
    rows = [
        [
            f.figure,
            f"{f.value:.4g}",
            f.unit,
            "" if f.reach is None else f"{f.reach:g}",
            {None: "", True: "yes", False: "no"}[f.met],
            ", ".join(f"{peer} {value:.4g}" for peer, value in f.peers.items()),
        ]
        for f in figures
    ]
    print_table(["figure", "value", "unit", "reach", "met", "peers"], rows)
    document = {
        "machine": {"arch": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": versions_of(PACKAGES),
        "figures": [
            {
                "figure": f.figure,
                "value": f.value,
                "unit": f.unit,
                "reach": f.reach,
                "met": f.met,
                "peers": f.peers,
                "note": f.note,
            }
            for f in figures
        ],
    }
    FOLDER.mkdir(exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(document), indent=2)
    (FOLDER / f"{name}.json").write_bytes(data + b"\n")

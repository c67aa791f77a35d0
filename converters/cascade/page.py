"""The section of report.html on the certificate: loss against the share sent, the certified point and the naive one."""

from __future__ import annotations

from typing import Any

import jinja2
import numpy as np

from converters.cascade.calibrate import Calibration
from edgekit.certificate.document import REGRET
from edgekit.tensors import Array

_BEGIN, _END = b"<!-- cascade -->", b"<!-- /cascade -->"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760.0, 300.0, 58.0, 18.0, 22.0, 44.0
_POINTS = 200
_ROOM = 0.12  # share of the range that is left free above and below the curve


def with_version(page: bytes, name: str, old: str, new: str) -> bytes:
    """The report's page of the version `new` of a model; its title and heading name `old`."""
    for tag in ("<title>", "<h1>"):
        page = page.replace(f"{tag}{name} {old} ".encode(), f"{tag}{name} {new} ".encode(), 1)
    return page


def with_section(page: bytes, result: Calibration) -> bytes:
    """The report's page with the section after the first one; a section of an earlier calibration is replaced."""
    begin, end = page.find(_BEGIN), page.find(_END)
    if 0 <= begin < end:
        page = page[:begin] + page[end + len(_END) :].lstrip(b"\n")
    section = _BEGIN + b"\n" + _section(result) + b"\n" + _END + b"\n"
    at = page.find(b"</section>")
    at = at + len(b"</section>\n") if at >= 0 else page.rfind(b"</main>")
    return page[:at] + b"\n" + section + page[at:]


def _section(result: Calibration) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("converters.cascade", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("section.html.j2")
    return template.render(
        c=result.certificate, chart=_chart(result), tried=result.tried, repeated=result.repeated
    ).encode()


def _chart(result: Calibration) -> dict[str, Any]:
    """The geometry of the drawing; all numbers in its units."""
    certificate, found = result.certificate, result.proof
    is_regret = certificate.target == REGRET
    shown: Array = found.loss if is_regret else 1 - found.loss
    points = np.unique(np.linspace(0, len(shown) - 1, _POINTS).astype(int))
    points = points[np.isfinite(shown[points])]
    goal = result.limit if is_regret else 1 - result.limit
    low, high = float(min(shown[points].min(), goal)), float(max(shown[points].max(), goal))
    room = _ROOM * ((high - low) or 0.01)
    low, high = max(low - room, 0.0), min(high + room, 1.0)

    def x(share: float) -> float:
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def at(threshold: float) -> dict[str, Any]:
        index = min(int(np.searchsorted(found.threshold, threshold)), len(shown) - 1)
        share, value = float(found.sent[index]), float(shown[index])
        return {"x": x(share), "y": y(value), "share": share, "value": value}

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "bottom": _HEIGHT - _BOTTOM,
        "line": " ".join(f"{x(float(found.sent[i]))},{y(float(shown[i]))}" for i in points),
        "goal": y(goal),
        "certified": at(certificate.threshold),
        "naive": None if result.naive is None else at(result.naive),
        "x_ticks": [(x(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1.0)],
        "y_ticks": [(y(value), f"{value:.1%}") for value in np.linspace(low, high, 5)],
        "axis": "regret" if is_regret else certificate.target.replace("-", " "),
    }

"""The report in headless Chromium: findings of axe, the width of a phone, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.report.page import report_html
from tests.converters.report.test_report import report
from tests.simulators.browser import CHROMIUM, browser


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_report_has_no_serious_finding(tmp_path: Path) -> None:
    """The points of the drawing had a label without a role, and wide tables could not be reached with the keyboard."""
    page = tmp_path / "report.html"
    page.write_bytes(report_html(report()))
    with browser(tmp_path / "profile") as tab:
        for width, colours in ((1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")):
            tab.size(width, 900)
            tab.media(prefers_color_scheme=colours)
            tab.open(page.as_uri())
            assert tab.findings() == []
            assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.errors == []

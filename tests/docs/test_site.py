"""The documentation site builds without a warning, so no link and no reference is dead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Sphinx imports every documented module and renders about 40 pages: 10 to 20 s.
@pytest.mark.heavy
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Dead links, dead anchors, missing pages and broken docstrings are errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "site" / "reference" / "settings.html").read_text()
    for key in ("broker_budget_bytes", "heartbeat_seconds", "queue_limit"):
        assert key in settings
    assert "edgekit_model_requests_total" in (tmp_path / "site" / "reference" / "metrics.html").read_text()
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text()
    for option in ("--max-drop", "--waves", "--config"):
        assert option in commands


def test_pages_load_nothing_from_elsewhere() -> None:
    """Pages load no script, style or picture from another host, so the site works without network."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"!\[[^]]*\]\(https?:|<script|<img[^>]+src=\"https?:", page.read_text()), page


def test_links_between_files_lead_somewhere() -> None:
    """Relative links of all pages, README included, name existing files."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for page in [*pages, *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not link.startswith(("http", "mailto:")):
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_architecture_page_names_files_that_exist() -> None:
    """Every path of "To change X, open Y" and of the table of rooms exists."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## To change X, open Y")[2].partition("\n## ")[0]
    paths = re.findall(r"`((?:edgekit|converters|device_agents)/[\w./]*)`", table)
    assert len(paths) >= 12
    for path in paths + re.findall(r"`((?:edgekit|converters|device_agents)/\w+)`", text):
        assert (ROOT / path).exists(), path


def test_each_common_problem_names_tests_that_exist() -> None:
    """Every row of the table names at least one test function, and each is in the file that is named before it."""
    text = (ROOT / "docs" / "pain-points.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", text, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 37))
    for number, cell in rows:
        files = [part.partition(": ") for part in cell.split("; ")]
        for file, _, names in files:
            path = ROOT / "tests" / file.strip("`")
            tests = re.findall(r"`(test_\w+)`", names)
            assert tests, f"row {number} names no test of {file}"
            missing = [name for name in tests if f"def {name}(" not in path.read_text()]
            assert not missing, f"row {number} names {missing}, which {path} does not have"

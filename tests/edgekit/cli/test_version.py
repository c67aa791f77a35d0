"""`--version`: one line for scripts; with `--verbose` the information for a bug report."""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agents.__main__ import agent
from edgekit import __version__
from edgekit.cli.main import edgekit
from edgekit.cli.version import REPORTED_PACKAGES
from edgekit.versions import version_of, versions_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROGRAMS = {"edgekit": edgekit, "edgekit-agent": agent}
ROOT = Path(__file__).parents[3]


def said(program: str, *words: str, status: int = 0) -> str:
    """The stdout of a program."""
    done = CliRunner().invoke(PROGRAMS[program], words, prog_name=program)
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version_is_one_line(program: str) -> None:
    """Scripts can read the version as one line."""
    assert said(program, "--version") == f"{program}, version {__version__}\n"
    assert json.loads(said(program, "--version", "--json")) == {"edgekit": __version__}


@pytest.mark.parametrize("program", PROGRAMS)
def test_verbose_adds_the_system_and_every_package(program: str) -> None:
    """The order of the options does not matter; missing packages are listed too."""
    text = said(program, "--version", "--verbose")
    assert text == said(program, "-v", "--version")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert lines["python"].startswith(platform.python_version())
    assert lines["machine"] == platform.machine()
    assert lines["numpy"] == metadata.version("numpy")
    assert lines["tflite-runtime"] == (version_of("tflite-runtime") or "not installed")
    assert lines["mosquitto"] == "not found" or Path(lines["mosquitto"]).is_file()
    found = json.loads(said(program, "--version", "--verbose", "--json"))
    assert found["packages"] == {name: version_of(name) for name in REPORTED_PACKAGES}
    assert found["system"] == lines["system"]


def test_the_report_names_what_pyproject_asks_for() -> None:
    """No dependency of edgekit or of an extra is left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [line for lines in project["optional-dependencies"].values() for line in lines] + project["dependencies"]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in asked}
    assert set(REPORTED_PACKAGES) == names - {"edgekit"}


def test_a_package_that_is_not_installed_has_no_version() -> None:
    """edgekit's own version comes from the source, also in an editable installation."""
    assert version_of("no-such-package-at-all") is None
    assert versions_of(("edgekit", "no-such-package-at-all")) == {"edgekit": __version__}


def test_json_before_a_command_is_wrong_usage() -> None:
    """--json before a command is refused, because that command would not print JSON."""
    assert "--version" in said("edgekit", "--json", "targets", status=2)

"""Rules for every command: help with an example, quick start, progress."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from device_agents.__main__ import agent
from edgekit.cli.common.console import ProgressLine
from edgekit.cli.main import COMMANDS, edgekit, run


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is not a group, by the words of its command line."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, f"{path} {name}")


ALL = dict([*leaves(edgekit, "edgekit"), *leaves(agent, "edgekit-agent")])


def test_every_noun_has_a_command() -> None:
    """Every entry of the table of nouns leads to a command of that name."""
    assert {path.split()[1] for path in ALL if path.startswith("edgekit ")} == set(COMMANDS)


@pytest.mark.parametrize("path", ALL)
def test_help_shows_an_example_that_begins_with_the_command(path: str) -> None:
    """The help of every command shows an example that begins with the command."""
    text = ALL[path].help or ""
    assert "Example" in text
    assert any(line.strip().startswith(path) for line in text.splitlines())


def test_importing_the_command_line_imports_no_command() -> None:
    """`edgekit --help` is quick: it lists the nouns without loading a command."""
    code = "import sys, edgekit.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "edgekit.cli.main" in loaded
    assert not {"tuf", "sqlalchemy", "onnx", "edgekit.cli.registry.group"} & loaded


def test_progress_tells_the_time_left_of_long_work_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pipe: nothing in the first seconds, then a line for each tenth, with the seconds left."""
    now = [100.0]
    monkeypatch.setattr("edgekit.cli.common.console.time.monotonic", lambda: now[0])
    progress = ProgressLine("upload")
    now[0] = 101.0
    progress(10, 100)
    assert capsys.readouterr().err == ""
    for done in (20, 21, 40, 100):
        now[0] = 100.0 + done
        progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["upload:  20%, 80 s left", "upload:  40%, 60 s left", "upload: 100%"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(number: int, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """The message names the file and says that temporary files can go elsewhere; it is no bug to report."""

    @click.command()
    def full() -> None:
        raise OSError(number, os.strerror(number), "candidate.onnx")

    monkeypatch.setattr(sys, "argv", ["edgekit"])
    assert run(full, "edgekit") == 1
    said = capsys.readouterr().err
    assert "edgekit: the disk is full: candidate.onnx" in said
    assert "TMPDIR" in said
    assert "unexpected" not in said

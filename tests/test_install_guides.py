"""The installation and upgrade guides name only files, settings, commands and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest

from device_agents.__main__ import agent
from edgekit.bundle.targets import known_targets
from edgekit.cli.main import edgekit
from edgekit.settings import AgentSettings
from edgekit.settings.load import tomllib

ROOT = Path(__file__).parent.parent
GUIDES = ("install-raspberry-pi.md", "install-jetson.md")
UPGRADE = "upgrade.md"
PROGRAMS: dict[str, click.Group] = {"edgekit": edgekit, "edgekit-agent": agent}


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / guide).read_text(), re.DOTALL)


def commands(guide: str) -> list[tuple[str, list[str]]]:
    """Each call of edgekit's programs in the guide, as (program, arguments)."""
    calls = []
    for line in "\n".join(blocks(guide, "bash")).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|", line):
            words = shlex.split(re.sub(r"^\s*sudo (-u \S+ )?(env (\w+=\S+ )*)?", "", part), comments=True)
            if words and Path(words[0]).name in PROGRAMS:
                calls.append((Path(words[0]).name, words[1:]))
    return calls


@pytest.mark.parametrize("guide", [*GUIDES, UPGRADE])
def test_every_command_parses(guide: str) -> None:
    """Every command and option of the guide is known to the command line's parsers."""
    calls = commands(guide)
    assert {program for program, _ in calls} == set(PROGRAMS)
    for program, arguments in calls:
        command: click.Command = PROGRAMS[program]
        while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
            inner = command.get_command(click.Context(command), arguments[0])
            assert inner is not None, (program, arguments)
            command, arguments = inner, arguments[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} - known <= {"--version"}, (program, arguments)
        assert not isinstance(command, click.Group) or arguments == ["--version"], (program, arguments)


@pytest.mark.parametrize("guide", GUIDES)
def test_what_is_copied_to_a_device_exists(guide: str) -> None:
    """The guide names only existing files of this repository, pages and target profiles."""
    text = (ROOT / "docs" / guide).read_text()
    for path in re.findall(r"\b(?:deploy|constraints)/[\w.-]+", text):
        assert (ROOT / path).is_file(), path
    for page in re.findall(r"\]\(([\w.-]+\.md)", text):
        assert (ROOT / "docs" / page).is_file(), page
    targets = set(re.findall(r"--target ([\w-]+)", text))
    assert targets
    assert targets <= set(known_targets())


def test_pages_that_the_upgrade_names_exist() -> None:
    """The upgrade guide names only existing pages and files of the last release."""
    text = (ROOT / "docs" / UPGRADE).read_text()
    pages = re.findall(r"\]\(([\w.-]+\.md)", text)
    assert {"states.md", *GUIDES} <= set(pages)
    for name in [f"docs/{page}" for page in pages] + re.findall(r"`(tests/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("guide", GUIDES)
def test_every_setting_is_one(guide: str) -> None:
    """Every TOML block of the guide loads as settings of the agent."""
    for block in blocks(guide, "toml"):
        values = {"device": "d", "fleet": "f", "target": "jetson-orin", **tomllib.loads(block)}
        assert msgspec.convert(values, AgentSettings)

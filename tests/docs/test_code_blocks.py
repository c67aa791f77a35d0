"""The code blocks of the documentation: commands and options exist, settings load, Python compiles."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from converters.data.preprocessing import read_steps
from device_agents.__main__ import agent
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import parse_targets
from edgekit.cli.main import edgekit
from edgekit.serving.api.keys import parse_keys
from edgekit.settings import AgentSettings, ControlSettings, load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "console", "toml", "python", "json", "text", "ini", "nginx"}
PACKAGES = {"edgekit", "converters", "device_agents"}
PROGRAMS: dict[str, click.Command] = {"edgekit": edgekit, "edgekit-agent": agent}
AGENT = {"device": "pi-1", "fleet": "default", "target": "raspberry-pi-4"}  # required keys of agent.toml
OPTIONAL = re.compile(r"\[[^\]]*\]")  # for example [--waves ...] in a synopsis


def blocks(language: str) -> list[object]:
    """One parameter for each code block of a language."""
    parameters = []
    for page in PAGES:
        for number, (tag, body) in enumerate(FENCE.findall(page.read_text()), 1):
            if tag == language:
                parameters.append(pytest.param(body, id=f"{page.relative_to(ROOT)}:{number}"))
    return parameters


def commands(body: str) -> Iterator[list[str]]:
    """The words of each call of edgekit or edgekit-agent in a shell block."""
    joined = body.replace("\\\n", " ")
    for line in joined.splitlines():
        line = OPTIONAL.sub("", line.partition("  #")[0]).strip().removeprefix("$ ").removesuffix("&").strip()
        for part in re.split(r"&&|;|\|", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                words = words[1:]
            if words and Path(words[0]).name in PROGRAMS:
                yield [Path(words[0]).name, *words[1:]]


def check_call(command: click.Command, name: str, words: list[str]) -> None:
    """Follow `words` through groups to a command, and check that its options exist."""
    context = click.Context(command, info_name=name)
    while True:
        options = {
            flag: parameter for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        options |= dict.fromkeys(context.help_option_names) | {"--help": None}
        rest: list[str] = []
        position = 0
        while position < len(words):
            word = words[position]
            if word.startswith("-") and len(word) > 1:
                flag, equals, _ = word.partition("=")
                assert flag in options, f"{context.command_path} has no option {flag}"
                parameter = options[flag]
                if isinstance(parameter, click.Option) and not parameter.is_flag and not equals:
                    position += parameter.nargs
            elif isinstance(command, click.Group):
                rest = words[position:]
                break
            position += 1
        if not isinstance(command, click.Group) or not rest:
            return
        found = command.get_command(context, rest[0])
        assert found is not None, f"{context.command_path} has no command {rest[0]}"
        context = click.Context(found, info_name=rest[0], parent=context)
        command, words = found, rest[1:]


@pytest.mark.parametrize("body", [*blocks("bash"), *blocks("console")])
def test_commands_and_options_exist(body: str) -> None:
    """Each call of edgekit and edgekit-agent names a command and options that exist."""
    for name, *words in commands(body):
        check_call(PROGRAMS[name], name, words)


def test_a_call_of_something_that_is_not_there_is_found() -> None:
    """An unknown command or option is reported, so the test above can fail."""
    with pytest.raises(AssertionError, match="has no option --no-such"):
        check_call(edgekit, "edgekit", ["convert", "m.keras", "--no-such"])
    with pytest.raises(AssertionError, match="has no command remodel"):
        check_call(edgekit, "edgekit", ["remodel"])
    assert list(commands("sudo edgekit-agent check --config a.toml  # look\n")) == [
        ["edgekit-agent", "check", "--config", "a.toml"]
    ]


@pytest.mark.parametrize("body", blocks("toml"))
def test_toml_loads(body: str, tmp_path: Path) -> None:
    """Each block loads as settings, API keys, target profiles, a recipe, or steps before and after the model."""
    tables = tomllib.loads(body)
    file = tmp_path / "block.toml"
    file.write_text(body)
    if {"before", "after"} & set(tables):
        (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
        assert read_steps(file)
    elif "precision" in tables:
        assert msgspec.convert(tables, Recipe)
    elif any("arch" in table for table in tables.values() if isinstance(table, dict)):
        assert parse_targets(body)
    elif isinstance(tables.get("keys"), dict):
        assert parse_keys(body)
    elif set(tables) <= set(ControlSettings.__struct_fields__):
        assert load_settings(ControlSettings, file=file, environ={})
    else:
        flags = {name: value for name, value in AGENT.items() if name not in tables}
        assert load_settings(AgentSettings, file=file, environ={}, flags=flags)


@pytest.mark.parametrize("body", blocks("python"))
def test_python_compiles(body: str) -> None:
    """Each block is valid Python, and its imports from edgekit exist."""
    tree = ast.parse(body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("body", blocks("json"))
def test_json_parses(body: str) -> None:
    """Each block is valid JSON."""
    json.loads(body)


def test_every_block_says_its_language() -> None:
    """Each block names a language that a test knows."""
    for page in PAGES:
        for tag, _ in FENCE.findall(page.read_text()):
            if not tag.startswith("{"):
                assert tag in LANGUAGES, f"{page.relative_to(ROOT)} has a block of {tag or 'no language'}"

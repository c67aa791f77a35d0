"""Shell completion: real shells complete nouns, verbs and options, and nothing heavy is loaded for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cli.completion import SHELLS
from edgekit.cli.main import COMMANDS

PROGRAMS = ("edgekit", "edgekit-agent")
BIN = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
HEAVY = {"tensorflow", "keras", "torch", "onnx", "onnxruntime", "tuf", "sqlalchemy", "obstore", "joblib"}

# Each takes the words of a line, the last one unfinished, and prints what the shell would offer, one a line.
BASH = """
eval "$({program} completion bash)"
COMP_WORDS=({words}"") COMP_CWORD={last} COMPREPLY=()
{function} {program} "" "" && printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
autoload -Uz compinit && compinit -u -D
eval "$({program} completion zsh)"
[[ $_comps[{program}] == {function} ]] || exit 9
_describe() {{ print -rl -- "${{completions_with_descriptions[@]%%:*}}" }}
compadd() {{ print -rl -- "${{completions[@]}}" }}
words=({words}"") CURRENT={last}+1
{function}
"""
FISH = """
{program} completion fish | source
complete --do-complete "{words}" | string replace --regex '\\t.*' ''
"""


def offered(shell: str, program: str, *words: str) -> list[str]:
    """The completions of `shell` after `program` and `words`; the last word is incomplete."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = [program, *words]
    function = f"_{program.replace('-', '_')}_completion"
    if shell == "fish":
        script = FISH.format(program=program, words=" ".join(line))
    else:
        quoted = "".join(f"'{word}' " for word in line[:-1]) + f"'{line[-1]}'"
        template = {"bash": BASH, "zsh": ZSH}[shell].replace('{words}""', "{words}")
        script = template.format(program=program, function=function, words=quoted, last=len(words))
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run([shell, *options, "-c", script], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def answered(module: str, program: str, line: str) -> tuple[list[str], set[str]]:
    """The program's completions for bash, and the modules that it loaded."""
    code = f"import atexit, sys, {module}; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    code += f"{module}.main()"
    variable = f"_{program.replace('-', '_')}_COMPLETE".upper()
    asked = {variable: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**ENV, **asked}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("plain,") for line in done.stdout.split()], set(done.stderr.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_nouns_verbs_and_options(shell: str) -> None:
    """A noun that was begun, the verbs of a noun, and a long option that was begun."""
    assert offered(shell, "edgekit", "re") == ["recheck", "registry"]
    assert {"init", "publish", "verify"} <= set(offered(shell, "edgekit", "registry", ""))
    assert offered(shell, "edgekit", "convert", "--max-b") == ["--max-bytes"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_the_agent(shell: str) -> None:
    """`edgekit-agent` has the same command; its name has a dash, which no shell function may have everywhere."""
    found = set(offered(shell, "edgekit-agent", ""))
    assert found == {"run", "status", "check", "join", "import", "agree", "completion"}


def test_every_noun_is_offered() -> None:
    """Without any word, bash lists the table of nouns."""
    assert offered("bash", "edgekit", "") == list(COMMANDS)


@pytest.mark.parametrize("line", ["edgekit ", "edgekit convert --", "edgekit registry ", "edgekit-agent "])
def test_completing_loads_nothing_heavy(line: str) -> None:
    """No completion waits for TensorFlow, ONNX, TUF or SQLAlchemy to be imported."""
    program = line.partition(" ")[0]
    module = {"edgekit": "edgekit.cli.main", "edgekit-agent": "device_agents.__main__"}[program]
    offers, loaded = answered(module, program, line)
    assert offers
    assert module in loaded
    assert not loaded & HEAVY


def test_completing_a_noun_imports_no_command() -> None:
    """The list of nouns comes from the table."""
    offers, loaded = answered("edgekit.cli.main", "edgekit", "edgekit ")
    assert offers == list(COMMANDS)
    assert not {target.partition(":")[0] for target, _ in COMMANDS.values()} & loaded


def test_a_shell_that_is_not_known_is_wrong_usage() -> None:
    """The error lists the known shells."""
    done = subprocess.run([BIN / "edgekit", "completion", "tcsh"], env=ENV, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(shell in done.stderr for shell in SHELLS)

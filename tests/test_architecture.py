"""The structure of the code: checks of rooms, rules and functions that `make lint` cannot make."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgekit", "converters", "device_agents")
RULES = re.compile(r"\b(Pure|Rules only|Pure rules)\b")
MAX_FUNCTION_LINES = 60


def sources() -> list[tuple[str, Path]]:
    """Module name and path of every module of the three packages."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in paths]


def rules() -> set[str]:
    """The modules that the import contract "rules do no I/O" names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (names,) = (one["source_modules"] for one in contracts if one["name"] == "rules do no I/O")
    return set(names)


def test_every_file_that_calls_itself_a_rule_is_held_to_it() -> None:
    """A module whose docstring says "Pure" or "Rules only" is in the import contract, itself or through its room."""
    contract = rules()
    for module, path in sources():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if RULES.search(text):
            parts = module.split(".")
            assert {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & contract, module


def test_every_room_says_what_lives_there() -> None:
    """Each package's `__init__.py` has a docstring of at least two sentences: what lives there, and what may not."""
    for _, path in sources():
        if path.name == "__init__.py" and "versions" not in path.parts:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert len(re.findall(r"[.!](?:\s|$)", text)) >= 2, path.relative_to(ROOT)


def test_functions_fit_on_a_screen() -> None:
    """No function has more than 60 lines without its docstring."""
    for _, path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                lines = (node.end_lineno or 0) - node.lineno + 1
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    lines -= (first.end_lineno or 0) - first.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"

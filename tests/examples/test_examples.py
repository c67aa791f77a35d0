"""Every example runs in an empty folder, like a reader runs it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAVY = {
    "digits.py",
    "convert_keras.py",
    "convert_onnx.py",
    "finetune.py",
    "ask_with_a_photo.py",
}  # they convert or train
MODELS = {"digits.py"}  # makes the demo's models; the demo runs it


def scripts() -> list[object]:
    """One parameter for each example."""
    paths = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in MODELS)
    return [pytest.param(p, id=p.stem, marks=[pytest.mark.heavy] if p.name in HEAVY else []) for p in paths]


@pytest.mark.parametrize("script", scripts())
def test_an_example_runs_and_says_what_it_prints(script: Path, tmp_path: Path) -> None:
    """An example exits 0, prints something, has fewer than 150 lines, and its docstring describes the output."""
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    text = script.read_text()
    assert len(text.splitlines()) < 150
    assert "print" in (ast.get_docstring(ast.parse(text)) or "").lower()


def test_every_promised_example_is_there() -> None:
    """The folder has one script for each part of edgekit that a newcomer wants to see."""
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    workflow = {"digits", "convert_keras", "convert_onnx", "publish_and_verify", "agent_on_loopback"}
    assert names >= workflow | {"staged_rollout", "ask_the_agent", "embed_inference", "ask_with_a_photo", "finetune"}

"""Each parser under libFuzzer: ``python -m tests.fuzz.run [--seconds N] [TARGET ...]``.

Atheris has an environment of its own, `.bench/fuzz`; where it cannot be had, that is said and nothing fails. Inputs
that reach new code are kept in `.bench/fuzz/corpus`; one that ends a parser is printed, and belongs into tests/assets.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.fuzz.targets import CORPORA, TARGETS

HOME = Path(".bench/fuzz")
MEMORY_MIB, INPUT_SECONDS, INPUT_BYTES = 700, 2, 64 * 1024


def environment() -> Path | None:
    """The interpreter that has atheris; None where it cannot be had."""
    python = HOME / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
    if subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "atheris"], capture_output=True)
    found = subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode == 0
    return python if found else None


def fuzz(python: Path, name: str, seconds: int) -> bool:
    """Run one target; True when nothing ended it."""
    corpus = HOME / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"]
    words = [*limits, f"-max_len={INPUT_BYTES}", "-print_final_stats=1", f"-artifact_prefix={HOME}/{name}-"]
    paths = os.pathsep.join([".", sysconfig.get_path("purelib")])
    command = [python, "-m", "tests.fuzz.one", name, *words, str(corpus), str(CORPORA / name)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    ran = " ".join(line.split(":")[-1].strip() for line in said if "number_of_executed_units" in line)
    print(f"{name:12} {'ok' if done.returncode == 0 else 'FAILED'}  {ran or '?'} inputs", flush=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    asked = parser.parse_args()
    python = environment()
    if python is None:
        print("skipped: atheris cannot be had here", file=sys.stderr)
        return 0
    passed = [fuzz(python, name, asked.seconds) for name in asked.targets or TARGETS]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())

"""Runs parsers under libFuzzer: ``python -m tests.fuzz.run [--seconds N] [TARGET ...]``.

Atheris is installed into a separate environment, `.bench/fuzz`. If that fails, the script prints a message and exits 0.
Inputs that reach new code are stored in `.bench/fuzz/corpus`. If an input makes a parser fail, the script prints the
failure; add that input to tests/assets/fuzz.
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
    """The interpreter of an environment with atheris; None if atheris cannot be installed."""
    python = HOME / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
    if subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "atheris"], capture_output=True)
    installed = subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode == 0
    return python if installed else None


def fuzz(python: Path, name: str, seconds: int) -> bool:
    """Fuzz one target. Returns True if no input made it fail."""
    corpus = HOME / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"]
    words = [*limits, f"-max_len={INPUT_BYTES}", "-print_final_stats=1", f"-artifact_prefix={HOME}/{name}-"]
    paths = os.pathsep.join([".", sysconfig.get_path("purelib")])
    command = [python, "-m", "tests.fuzz.one", name, *words, str(corpus), str(CORPORA / name)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    inputs = " ".join(line.split(":")[-1].strip() for line in lines if "number_of_executed_units" in line)
    print(f"{name:12} {'ok' if done.returncode == 0 else 'FAILED'}  {inputs or '?'} inputs", flush=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    """Fuzz the named targets, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=int, default=60, help="duration for each target")
    options = parser.parse_args()
    python = environment()
    if python is None:
        print("skipped: atheris cannot be installed", file=sys.stderr)
        return 0
    passed = [fuzz(python, name, options.seconds) for name in options.targets or TARGETS]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())

"""The quick start of the README works as written."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulators.ports import free_port

LONG_SECONDS = 110  # of the whole file: it starts early, see tests/conftest.py

ROOT = Path(__file__).parent.parent
MARK = "<!-- quick start: run by tests/test_readme.py -->"


def quick_start() -> str:
    """The commands of the quick start."""
    match = re.search(re.escape(MARK) + r"\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match, "the README has no quick start"
    return match.group(1)


# It trains, converts, starts four programs and rolls out, like a reader does: about 100 s.
@pytest.mark.heavy
def test_the_quick_start_works_as_written(tmp_path: Path) -> None:
    """Every command exits 0 with a freshly trained model, and the device answers with version 1.0.0."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    make = [sys.executable, ROOT / "examples" / "digits.py", "-o", tmp_path, "--no-cloud"]
    subprocess.run(make, check=True, timeout=1200)
    port = free_port()
    script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
    script += quick_start().replace("127.0.0.1:8600", f"127.0.0.1:{port}")  # the default port may be in use
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "EDGEKIT_BROKER": f"mqtt://127.0.0.1:{free_port()}",
        "EDGEKIT_HTTP": f"127.0.0.1:{port}",
    }
    child = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(timeout=1200)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0, out
    assert "1.0.0" in out
    assert '"versions"' in out

"""The self-test of a staged bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_agents.update.self_test import run_self_test
from edgekit.errors import ManifestError, RuntimeLoadError, SelfTestError
from tests.simulators.small_models import litert_bundle, onnx_bundle


async def test_sound_bundles_pass_on_both_runtimes(tmp_path: Path) -> None:
    """The result tells the largest difference and that all decisions agree."""
    folders = [tmp_path / str(i) for i in range(3)]
    bundles = [onnx_bundle(folders[0]), litert_bundle(folders[1]), litert_bundle(folders[2], quantized=True)]
    for manifest, folder in zip(bundles, folders, strict=True):
        found = await run_self_test(manifest, folder, 1)
        assert found.passed
        assert found.agreement == 1.0
        assert found.rows == 3


async def test_a_signed_model_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    """The error names the model, the output, the difference and the limit."""
    manifest = onnx_bundle(tmp_path, gain=-1.0, golden_gain=1.0)
    with pytest.raises(SelfTestError, match=r"small 1.0.0 failed .* scores: differs by .*, allowed 1e-05; only 0.0%"):
        await run_self_test(manifest, tmp_path)


async def test_damaged_files_are_told_apart(tmp_path: Path) -> None:
    """A broken artifact is a load error, broken or missing golden samples are the bundle's fault."""
    manifest = onnx_bundle(tmp_path)
    (tmp_path / "golden.npz").write_bytes(b"nonsense")
    with pytest.raises(ManifestError, match="golden samples cannot be read"):
        await run_self_test(manifest, tmp_path)
    (tmp_path / "golden.npz").unlink()
    with pytest.raises(ManifestError, match="golden samples cannot be read"):
        await run_self_test(manifest, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx"):
        await run_self_test(manifest, tmp_path)


HANGS = """
import asyncio, time
from pathlib import Path
from device_agents.update.self_test import run_self_test

async def main():
    try:
        await asyncio.wait_for(run_self_test(None, Path(), load=lambda *_: time.sleep(3600)), 0.2)
    except asyncio.TimeoutError:
        print("the deadline has passed")

asyncio.run(main())
"""


def test_a_self_test_that_never_ends_keeps_no_process_alive() -> None:
    """Native code cannot be stopped. Its thread is left behind, so the agent still stops when it is told to."""
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=100)
    assert done.stdout == "the deadline has passed\n", done.stderr
    assert done.returncode == 0

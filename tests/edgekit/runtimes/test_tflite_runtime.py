"""tflite-runtime 2.14 in an environment of its own (Python up to 3.11, numpy 1).

Run: pytest -m soak tests/edgekit/runtimes. The environment is made with uv from the package index; without either, or
without a Python for it, the test is skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.runtimes import open_runtime
from tests.simulators.small_models import litert_bundle

ROOT = Path(__file__).parents[3]
NEEDS = ("tflite-runtime==2.14.0", "numpy<2", "msgspec")
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import parse_manifest
from edgekit.runtimes import open_runtime
folder = Path(sys.argv[2])
manifest = parse_manifest((folder / "manifest.json").read_bytes())
runtime = open_runtime(manifest, folder)
assert self_test(runtime, manifest, (folder / "golden.npz").read_bytes()).passed
found = runtime.run({"x": np.load(folder / "x.npy")})
np.save(folder / "scores.npy", found["scores"])
import tflite_runtime
print(tflite_runtime.__version__, np.__version__, runtime.provider)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python interpreter in an environment with tflite-runtime."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).exists():
        pytest.skip("uv is not installed")
    chosen = sys.executable if sys.version_info < (3, 12) else "3.11"
    made = tmp_path_factory.mktemp("tflite") / "venv"
    for command in (
        [uv, "venv", "-q", "-p", chosen, str(made)],
        [uv, "pip", "install", "-q", "-p", str(made / "bin" / "python"), *NEEDS],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no environment for tflite-runtime: {done.stderr.strip()[-300:]}")
    return made / "bin" / "python"


@pytest.mark.soak
@pytest.mark.parametrize("quantized", [False, True])
def test_the_adapter_runs_on_tflite_runtime(python: Path, tmp_path: Path, quantized: bool) -> None:
    """The bundle passes its self-test; int8 outputs equal LiteRT's exactly, float outputs within 1e-6."""
    manifest = litert_bundle(tmp_path, quantized=quantized)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [str(python), "-I", "-c", SCRIPT, str(ROOT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, numpy_version, _ = done.stdout.split()
    assert version == "2.14.0"
    assert numpy_version.startswith("1.")
    expected = open_runtime(manifest, tmp_path).run({"x": x})["scores"]
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, atol=0 if quantized else 1e-6)


BOTH = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from tflite_runtime.interpreter import Interpreter
from edgekit.runtimes.litert import BUILTIN, LiteRTRuntime
path = Path(sys.argv[2])
rows = np.load(path.with_name("x.npy"))
runtimes = [LiteRTRuntime(path), LiteRTRuntime(path, interpreter=Interpreter)]
runtimes.append(LiteRTRuntime(path, interpreter=Interpreter, kernels=BUILTIN))
found = [np.concatenate([one.run({"x": row[None]})["scores"] for row in rows]) for one in runtimes]
print(*(float(np.abs(other - found[0]).max()) for other in found[1:]), *{type(one._interpreter) for one in runtimes})
"""


@pytest.mark.soak
def test_both_libraries_can_be_compared_in_one_process(python: Path, tmp_path: Path) -> None:
    """With numpy 1, both libraries can be imported, as the report's runtime matrix needs."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    done = subprocess.run([uv, "pip", "install", "-q", "-p", str(python), "ai-edge-litert>=2.1", "numpy<2"])
    if done.returncode:
        pytest.skip("ai-edge-litert cannot be had")
    litert_bundle(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    command = [str(python), "-I", "-c", BOTH, str(ROOT), str(tmp_path / "model.tflite")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *kinds = done.stdout.split(maxsplit=2)
    assert float(first) < 1e-6
    assert float(second) < 1e-6
    assert "tflite_runtime.interpreter.Interpreter" in kinds[0]
    assert "ai_edge_litert.interpreter.Interpreter" in kinds[0]

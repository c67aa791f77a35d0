"""The container images: built by deploy/containers/build.sh, and their root filesystems run by chroot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from device_agents.inference.cloud_client import CloudClient
from edgekit.registry import publish
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from tests.simulators.small_models import SURE, litert_bundle, onnx_bundle, softmax

ROOT = Path(__file__).parent.parent
ROLES = ("agent", "controller", "cloud")
USER = 10001
MAX_MIB = {"agent": 500, "controller": 450, "cloud": 500}  # unpacked; docs/cloud.md states the sizes
PATHS = "PYTHONPATH=/opt/edgekit/own:/opt/edgekit/packages"
TOOLS = all(shutil.which(tool) for tool in ("mmdebstrap", "umoci"))

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root, for mmdebstrap and chroot"),
    pytest.mark.skipif(not TOOLS, reason="needs mmdebstrap and umoci: apt-get install mmdebstrap umoci"),
]

SELF_TEST = """
import sys
from pathlib import Path
from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import parse_manifest
from edgekit.runtimes import open_runtime
for name in sys.argv[1:]:
    folder = Path(name)
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    result = self_test(open_runtime(manifest, folder), manifest, (folder / "golden.npz").read_bytes())
    print(manifest.runtime, result.passed, *result.faults)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all images and root filesystems; `EDGEKIT_IMAGES` names one that was built before."""
    if "EDGEKIT_IMAGES" in os.environ:
        return Path(os.environ["EDGEKIT_IMAGES"])
    folder = tmp_path_factory.mktemp("images")
    command = [ROOT / "deploy" / "containers" / "build.sh", folder, *ROLES]
    environ = {**os.environ, "UV": str(Path(sys.executable).parent / "uv")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def inside(images: Path, role: str, *command: object) -> Iterator[subprocess.Popen[str]]:
    """A process of the image's user, in its home; ended with the block."""
    chroot = ["chroot", f"--userspec={USER}:{USER}", images / f"rootfs-{role}"]
    home = ["env", "-i", "-C", "/var/lib/edgekit", PATHS, "HOME=/var/lib/edgekit", "PATH=/usr/bin:/bin", "python3"]
    with subprocess.Popen(
        [*map(str, (*chroot, *home, *command))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def run(images: Path, role: str, *command: object) -> str:
    with inside(images, role, *command) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def give(folder: Path) -> None:
    """Make the image's user the owner of a folder."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)


@pytest.fixture
def home(images: Path) -> Iterator[Path]:
    """A new folder in the home of every root filesystem's user; the one of the cloud tier."""
    homes = [images / f"rootfs-{role}" / "var/lib/edgekit/scratch" for role in ROLES]
    for one in homes:
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir()
        give(one)
    yield homes[-1]
    for one in homes:
        shutil.rmtree(one)


@pytest.mark.parametrize("role", ROLES)
def test_an_image_has_its_configuration_and_its_size(images: Path, role: str) -> None:
    """It runs as a user without rights; the layers are the base, the packages and edgekit."""
    layout = images / f"edgekit-{role}"

    def blob(descriptor: dict[str, str]) -> dict[str, object]:
        return dict(json.loads((layout / "blobs/sha256" / descriptor["digest"].partition(":")[2]).read_text()))

    index = json.loads((layout / "index.json").read_text())
    manifest = blob(index["manifests"][0])
    config = blob(manifest["config"])["config"]  # type: ignore[arg-type]
    assert isinstance(config, dict)
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"][:2] == ["python3", "-m"]
    assert len(manifest["layers"]) == 3  # type: ignore[arg-type]
    assert manifest["layers"][2]["size"] < 10 * 2**20  # type: ignore[index]
    used = subprocess.run(["du", "-sm", images / f"rootfs-{role}"], capture_output=True, text=True, check=True)
    assert int(used.stdout.split()[0]) < MAX_MIB[role]


async def test_the_cloud_tiers_image_serves_a_model(images: Path, home: Path) -> None:
    """From a registry, verified, over HTTP."""
    store = open_store(f"file://{home}/registry")
    repository = Repository(store, home / "keys")
    repository.create()
    onnx_bundle(home / "made", name="big", target="server", batch=None, gain=5.0)
    publish(store, repository, home / "made")
    give(home)
    where = (
        "--registry",
        "file:///var/lib/edgekit/scratch/registry",
        "--root",
        "scratch/keys/root.json",
        "--port",
        "0",
    )
    with inside(images, "cloud", "-m", "edgekit", "cloud", "serve", "--all", *where) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"ready at (http://\S+) \(big 1\.0\.0\)", line)
        assert found, line + process.stderr.read()
        client = CloudClient(found.group(1))
        answer = await client.infer("big", {"x": SURE}, timeout_seconds=10)
        client.close()
    np.testing.assert_allclose(answer.outputs["scores"], softmax(SURE, 5.0), atol=1e-6)


def test_the_agents_image_runs_models_of_both_runtimes(images: Path, home: Path) -> None:
    """ONNX Runtime and LiteRT pass the self-test of a bundle, as they do before a switch."""
    scratch = images / "rootfs-agent/var/lib/edgekit/scratch"
    onnx_bundle(scratch / "onnx")
    litert_bundle(scratch / "litert")
    assert run(images, "agent", "-c", SELF_TEST, "scratch/onnx", "scratch/litert") == "onnxruntime True\nlitert True\n"
    assert "edgekit" in run(images, "agent", "-m", "device_agents", "--version")


def test_the_controllers_image_makes_a_registry(images: Path, home: Path) -> None:
    """Commands of the control side run in it, as its user."""
    where = ("--registry", "file://scratch/registry", "--keys", "scratch/keys")
    run(images, "controller", "-m", "edgekit", "registry", "init", *where)
    assert list((images / "rootfs-controller/var/lib/edgekit/scratch/registry/metadata").glob("*.root.json"))
    assert "--broker" in run(images, "controller", "-m", "edgekit", "controller", "run", "--help")

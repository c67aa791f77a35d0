"""The manifests of deploy/kubernetes, checked with the schemas of Kubernetes and the types of KServe.

Run: python -m benchmarks.peers kubernetes-validate kserve && pytest -m soak tests/conformance
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import peers

HERE = Path(__file__).parent
MANIFESTS = HERE.parent.parent / "deploy" / "kubernetes"

pytestmark = pytest.mark.soak


def check(peer: str, what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    python = peers.python_of(peer)
    if python is None:
        pytest.skip(f"no environment with {peer}; make it: python -m benchmarks.peers {peer}")
    command = [python, HERE / "kubernetes_check.py", what, folder]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(("peer", "what", "count"), [("kubernetes-validate", "schemas", 7), ("kserve", "kserve", 1)])
def test_manifests_are_valid(peer: str, what: str, count: int) -> None:
    """Every document, and the patch for a mesh as it changes the Deployment."""
    done = check(peer, what, MANIFESTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok ") == count


@pytest.mark.parametrize(
    ("peer", "what", "file", "right", "wrong"),
    [
        ("kubernetes-validate", "schemas", "cloud.yaml", "minReplicas", "minimumReplicas"),
        ("kubernetes-validate", "schemas", "cloud.yaml", "containerPort: 8700", "containerPort: http"),
        ("kserve", "kserve", "inferenceservice.yaml", "minReplicas", "minimumReplicas"),
        ("kserve", "kserve", "inferenceservice.yaml", "mountPath", "mountpath"),
    ],
)
def test_a_faulty_manifest_is_refused(tmp_path: Path, peer: str, what: str, file: str, right: str, wrong: str) -> None:
    """So the check can fail."""
    for path in MANIFESTS.iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace(right, wrong) if path.name == file else text)
    assert check(peer, what, tmp_path).returncode != 0

"""The API against its own OpenAPI document: no answer to a generated request that the document does not allow.

Run: python -m benchmarks.peers schemathesis && pytest -m soak tests/edgekit/controller/web
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import peers
from tests.simulators.web_fleet import WebFleet

PYTHON = peers.python_of("schemathesis")
REASON = "no environment with schemathesis; make it: python -m benchmarks.peers schemathesis"
# A filter or the text of waves can be well-formed by the schema and still mean nothing.
NOT_CHECKED = "positive_data_acceptance"

pytestmark = [pytest.mark.soak, pytest.mark.skipif(PYTHON is None, reason=REASON)]


def test_every_answer_is_one_that_the_document_allows(fleet: WebFleet, tmp_path: Path) -> None:
    """No internal error, no undeclared status, no answer of another form, no bad request that is accepted."""
    command = [str(PYTHON), "-m", "schemathesis.cli", "run", f"{fleet.url}/openapi.json", "--max-examples", "50"]
    options = ["--phases", "coverage,fuzzing", "--exclude-checks", NOT_CHECKED, "--seed", "1"]
    header = ["-H", f"Authorization: Bearer {fleet.tokens['admin']}"]
    found = subprocess.run([*command, *options, *header], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
    assert "Authentication failed" not in found.stdout

"""Certificates as documents, and what they are bound to."""

from __future__ import annotations

import msgspec
import pytest

from edgekit.bundle.manifest import ROLE_MODEL
from edgekit.certificate.document import Bound, Bounded, Certificate, parse_certificate, void_reasons
from edgekit.certificate.scoring import ScoreFunction
from edgekit.errors import ManifestError
from tests.simulators.cascade_models import edge_bundle

RUNTIME = "onnxruntime 1.31.1"


@pytest.fixture
def manifest(tmp_path):
    return edge_bundle(tmp_path / "edge")


@pytest.fixture
def certificate(manifest):
    return Certificate(
        target="accuracy",
        value=0.9,
        error=0.04,
        confidence=0.95,
        score=ScoreFunction("margin", "logits"),
        threshold=0.5,
        output="scores",
        sent=Bounded(0.4, 0.45, 0.005),
        disagreement=Bounded(0.05, 0.07, 0.005),
        bound=Bound(manifest.file(ROLE_MODEL).sha256, "", "onnxruntime", RUNTIME, "pair-cloud", "ab" * 32),
        samples=1000,
    )


def test_a_certificate_is_read_as_it_was_written(certificate) -> None:
    """The id is that of the bytes, and unknown fields of later releases do not change what is known."""
    assert parse_certificate(certificate.canonical_bytes()) == certificate
    more = msgspec.json.decode(certificate.canonical_bytes()) | {"later": 1}
    assert parse_certificate(msgspec.json.encode(more)) == certificate


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"target": "speed"}, "target is 'speed'"),
        ({"format": 2}, "format is 2"),
        ({"value": 1.5}, "value is 1.5"),
        ({"sent": {"value": 0.1, "upper": 2.0, "error": 0.1}}, "sent.upper is 2.0"),
        ({"score": {"name": "guess"}}, "score function 'guess' is unknown"),
        ({"threshold": None}, "cannot be parsed"),
    ],
)
def test_faults_of_a_certificate_are_named(certificate, change, fault) -> None:
    """A document from outside is checked before it is used."""
    document = msgspec.json.decode(certificate.canonical_bytes()) | change
    with pytest.raises(ManifestError, match=fault):
        parse_certificate(msgspec.json.encode(document))


def test_any_change_of_what_it_is_bound_to_voids_it(certificate, manifest, tmp_path) -> None:
    """Artifact, preprocessing, runtime, its version, and output: each change is named."""
    assert void_reasons(certificate, manifest, RUNTIME) == []
    assert "version is onnxruntime 2.0" in void_reasons(certificate, manifest, "onnxruntime 2.0")[0]
    other = edge_bundle(tmp_path / "other", flaw=0.7)
    assert "the edge artifact" in void_reasons(certificate, other, RUNTIME)[0]
    for name, value in (("processing", "cd" * 32), ("runtime", "litert")):
        bound = msgspec.structs.replace(certificate.bound, **{name: value})
        changed = msgspec.structs.replace(certificate, bound=bound)
        assert len(void_reasons(changed, manifest, RUNTIME)) == 1
    assert void_reasons(certificate, manifest, "onnxruntime 2.0", {RUNTIME, "onnxruntime 2.0"}) == []
    assert len(void_reasons(certificate, manifest, "onnxruntime 2.0", {"onnxruntime 2.0"})) == 1
    renamed = msgspec.structs.replace(certificate, output="other")
    assert "the decision output" in void_reasons(renamed, manifest, RUNTIME)[0]

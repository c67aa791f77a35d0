"""The offload certificate: what is promised, how it was proven, and what it is bound to. Pure.

It is the file ``certificate.json`` of a bundle, in canonical JSON; the certificate's id is the sha256 of its bytes.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import hashlib
from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from edgekit.bounds import not_finite
from edgekit.bundle.manifest import ROLE_MODEL, SHA256, FileEntry, Manifest
from edgekit.certificate.scoring import ScoreFunction, function_faults
from edgekit.errors import ManifestError
from edgekit.preprocess import Processing

CERTIFICATE_NAME, ROLE_CERTIFICATE = "certificate.json", "certificate"
CERTIFICATE_FORMAT, ORIGINAL_FORMAT = 1, 2
ORIGINAL: Final = "original"
MAX_CERTIFICATE_BYTES = 64 * 1024
ACCURACY, REGRET, KEPT_ACCURACY = "accuracy", "regret", "kept-accuracy"
TARGETS = (ACCURACY, REGRET, KEPT_ACCURACY)


class Bounded(msgspec.Struct, frozen=True):
    """A measured share and its proven upper bound; `error` is the probability that the bound does not hold."""

    value: float
    upper: float
    error: float


class Bound(msgspec.Struct, frozen=True):
    """The models, steps and runtime that a certificate is bound to; it is void where one of them is different.

    Attributes:
        edge_model: sha256 of the edge artifact, hex.
        processing: sha256 of the steps around the edge model and their files, hex; empty without steps.
        runtime, runtime_version: What ran the edge model.
        cloud_model: Name of the cloud model in its tier; for people.
        cloud_digest: Digest of the cloud model, hex, as the answers of its tier report it: of the bundle, or of the
            model's own file where `cloud_format` is set.
        cloud_inputs: ``original`` where the cloud model got the bytes of the samples and decoded them itself; absent
            where it got the edge model's tensors.
        cloud_format: Format of the model file that was run instead of a bundle; absent for a bundle or a tier.
    """

    edge_model: str
    processing: str
    runtime: str
    runtime_version: str
    cloud_model: str
    cloud_digest: str
    cloud_format: str | msgspec.UnsetType = msgspec.UNSET
    cloud_inputs: Literal["original"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def original(self) -> bool:
        """True where the cloud model decodes the original bytes."""
        return self.cloud_inputs == ORIGINAL

    @property
    def certificate_format(self) -> int:
        """Format of a certificate with this bound: agents that know no original bytes must not read the second."""
        return ORIGINAL_FORMAT if self.original else CERTIFICATE_FORMAT

    @property
    def served_by(self) -> str:
        """The models that must answer for the certificate to be claimed, in words."""
        if self.cloud_format is msgspec.UNSET:
            return "a cloud tier whose answers report this digest of the bundle (edgekit cloud serve does)"
        return (
            f"a server of this {self.cloud_format} file whose answers report the file's sha256 as edgekit_model; "
            "edgekit cloud serve serves bundles, so calibrate with its bundle for it"
        )


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A proven threshold between an edge model and a cloud model.

    Attributes:
        target: ``accuracy`` (of the pair, at least `value`), ``regret`` (share of answers that are kept and differ from
            the cloud's, at most `value`) or ``kept-accuracy`` (of the answers that are kept, at least `value`).
        value: The target's value.
        error: Probability that the target is not met although it was proven.
        confidence: 1 less the error probabilities of the target and of both rates.
        score: Function of the edge model's decision output.
        threshold: Answers with a lower score are sent to the cloud tier.
        output: Logical name of the decision output.
        sent: Share of answers that are sent.
        disagreement: Share of differing answers among those that are kept.
        bound: What it is bound to.
        samples, unlabelled: Samples of the proof, with and without labels.
        edge_accuracy, cloud_accuracy: Measured on the samples of the proof; absent without labels.
    """

    target: str
    value: float
    error: float
    confidence: float
    score: ScoreFunction
    threshold: float
    output: str
    sent: Bounded
    disagreement: Bounded
    bound: Bound
    samples: int
    unlabelled: int = 0
    edge_accuracy: float | msgspec.UnsetType = msgspec.UNSET
    cloud_accuracy: float | msgspec.UnsetType = msgspec.UNSET
    format: int = CERTIFICATE_FORMAT

    def canonical_bytes(self) -> bytes:
        """Sorted keys, no spaces, UTF-8."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def id(self) -> str:
        """sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    @property
    def promise(self) -> str:
        """The promise in words."""
        words = {
            ACCURACY: f"accuracy of the pair at least {self.value:g}",
            REGRET: f"kept answers that differ from the cloud's at most {self.value:g} of all",
            KEPT_ACCURACY: f"accuracy of kept answers at least {self.value:g}",
        }
        return words[self.target]


_DECODER = msgspec.json.Decoder(Certificate)


def parse_certificate(data: bytes) -> Certificate:
    """Parse and check a certificate.

    Raises:
        ManifestError: it is too large or not JSON, or a field is missing or out of range. The message names all faults.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise ManifestError(f"certificate is {len(data)} bytes, the limit is {MAX_CERTIFICATE_BYTES}")
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"certificate cannot be parsed: {error}") from error
    faults = function_faults(found.score) + [f"{name} is not a finite number" for name in not_finite(found)]
    if found.format != found.bound.certificate_format:
        faults.append(f"format is {found.format}, this edgekit reads {found.bound.certificate_format} here")
    if found.target not in TARGETS:
        faults.append(f"target is {found.target!r}, expected one of {', '.join(TARGETS)}")
    rates = {"sent": found.sent, "disagreement": found.disagreement}
    shares = {"value": found.value, "confidence": found.confidence, "error": found.error}
    shares |= {f"{name}.{key}": getattr(one, key) for name, one in rates.items() for key in ("value", "upper", "error")}
    faults += [f"{name} is {share}, expected 0 to 1" for name, share in shares.items() if not 0 <= share <= 1]
    if faults:
        raise ManifestError("certificate is not valid: " + "; ".join(faults))
    return found


def certificate_entry(manifest: Manifest) -> FileEntry | None:
    """The certificate's file in a bundle; None where it has none."""
    return next((entry for entry in manifest.files if entry.role == ROLE_CERTIFICATE), None)


def processing_digest(manifest: Manifest) -> str:
    """sha256 of the steps before and after the model and of the files that they read, hex; empty without steps."""
    if not isinstance(manifest.processing, Processing):
        return ""
    read = manifest.processing.files()
    files: Mapping[str, str] = {entry.path: entry.sha256 for entry in manifest.files if entry.path in read}
    return hashlib.sha256(msgspec.json.encode([manifest.processing, files], order="sorted")).hexdigest()


def void_reasons(
    certificate: Certificate,
    manifest: Manifest,
    runtime_version: str,
    equal_versions: Collection[str] = (),
    *,
    original: bool = False,
) -> list[str]:
    """Why the certificate does not hold on this device; empty where it holds.

    Args:
        certificate: The certificate.
        manifest: The bundle that has it.
        runtime_version: Version of the runtime that runs the bundle here.
        equal_versions: Versions with which the bundle gives the same bits as here, by signed evidence.
        original: True where this device sends bytes as clients sent them to the cloud tier.
    """
    bound = certificate.bound
    runs = bound.runtime_version if bound.runtime_version in equal_versions else runtime_version
    pairs = (
        ("the edge artifact", manifest.file(ROLE_MODEL).sha256, bound.edge_model),
        ("the preprocessing", processing_digest(manifest), bound.processing),
        ("the runtime", manifest.runtime, bound.runtime),
        ("the runtime's version", runs, bound.runtime_version),
        ("the decision output", manifest.task.output, certificate.output),
        ("the kind of scores", manifest.task.scores, certificate.score.scores),
        ("the form of inputs for the cloud tier (cloud_inputs)", _form(original), _form(bound.original)),
    )
    return [
        f"{name} is {_short(found)}, certified was {_short(wanted)}" for name, found, wanted in pairs if found != wanted
    ]


def _form(original: bool) -> str:
    return ORIGINAL if original else "decoded"


def _short(text: str) -> str:
    return (text[:12] if SHA256.fullmatch(text) else text) or "none"

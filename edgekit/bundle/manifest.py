"""The manifest of a bundle: identity, files with digests, tensors, golden tolerances, quality and cost.

TUF signs the canonical bytes of the manifest; their sha256 is the bundle digest. A device uses a file only if the
manifest lists it, so parsing refuses every file name that could lead outside the bundle's folder.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import hashlib
import re
from typing import Any, Literal

import msgspec

from edgekit.bundle.bindings import Binding, binding_faults
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.state import client_inputs, client_outputs
from edgekit.errors import ManifestError, RecipeError
from edgekit.preprocess import Processing, processing_faults

MANIFEST_FORMAT = 1
MANIFEST_NAME = "manifest.json"
BLOCK_BYTES = 64 * 1024
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILES = 256
MAX_FILE_BYTES = 4 * 1024**3

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")

ROLE_MODEL = "model"
ROLE_CALIBRATION = "calibration"  # histograms of activations, from which later conversions compute ranges
ROLE_COMPILED = "compiled"  # the model as compiled by an accelerator's own compiler
ROLE_GOLDEN = "golden"
ROLE_REPORT = "report"
ROLE_PROCESSING = "processing"

SEAL_FORMAT = "edgekit-seal-1"
MAX_CLASSES = 64
_WRAPPED = re.compile(r"[0-9a-f]{96}")  # 32 bytes of key and 16 bytes of tag


class FileEntry(msgspec.Struct, frozen=True):
    """One artifact of a bundle.

    Attributes:
        path: A plain file name inside the bundle's folder.
        role: ``model``, ``golden``, ``report`` or ``processing`` (a vocabulary or anchors).
        size: Size in bytes.
        sha256: sha256 of the whole file, hex.
        blocks: sha256 of each block of BLOCK_BYTES, hex, in order; the last block can be shorter.
    """

    path: str
    role: str
    size: int
    sha256: str
    blocks: tuple[str, ...]


class Tolerance(msgspec.Struct, frozen=True):
    """The allowed difference between a runtime's output and the canonical float model's, on the golden inputs.

    Attributes:
        output: Logical output name.
        runtime: ``litert`` or ``onnxruntime``.
        max_abs: Largest allowed absolute difference, in the output's unit.
    """

    output: str
    runtime: str
    max_abs: float


class Golden(msgspec.Struct, frozen=True):
    """Limits of the device's self-test.

    Attributes:
        samples: Number of rows of golden.npz.
        tolerances: One per output and runtime.
        decisions_match: True if the class with the largest score must be the same for every row.
    """

    samples: int
    tolerances: tuple[Tolerance, ...]
    decisions_match: bool


class Task(msgspec.Struct, frozen=True):
    """The meaning of the outputs, if known; routing uses it.

    Attributes:
        kind: ``classification``, ``multilabel`` or ``other``.
        output: The logical output with the scores.
        scores: ``probabilities`` or ``logits``.
        labels: Class names in order; may be empty.
    """

    kind: str = "other"
    output: str = ""
    scores: str = ""
    labels: tuple[str, ...] = ()


class OutputQuality(msgspec.Struct, frozen=True):
    """The proof of one output.

    Attributes:
        output: Logical output name.
        metric: Its metric; empty where the output was not judged.
        max_drop: Largest allowed drop in the metric's unit; 0 where it was not judged.
        upper: Upper bound of the drop at the stated confidence; 0 where it was not judged or is not bounded.
        n: Number of samples; 0 where it was not judged.
        proven: True if the drop is proven to be within `max_drop`.
    """

    output: str
    metric: str = ""
    max_drop: float = 0.0
    upper: float = 0.0
    n: int = 0
    proven: bool = False


class Quality(msgspec.Struct, frozen=True):
    """A metric on labelled data that was not used for calibration.

    Attributes:
        metric: For example ``accuracy``.
        value: The metric of this bundle.
        float_value: The metric of the canonical float model on the same samples.
        n: Number of samples.
        proven: True if the drop of every judged output is within the budget at the stated confidence.
        outputs: One entry per output, where the model has several; also of outputs that were not judged.
        hard: Number of the samples that devices kept because they are hard; absent for none.
    """

    metric: str
    value: float
    float_value: float
    n: int
    proven: bool
    # UNSET and not empty, so that manifests without it keep their bytes and digest.
    outputs: tuple[OutputQuality, ...] | msgspec.UnsetType = msgspec.UNSET
    hard: int | msgspec.UnsetType = msgspec.UNSET


class Cost(msgspec.Struct, frozen=True):
    """The cost of one row on the target; `kind` is ``estimate``, ``instructions`` or ``measured``."""

    kind: str
    value: float
    unit: str


class WrappedKey(msgspec.Struct, frozen=True):
    """The content key of a sealed bundle, encrypted for one device class.

    Attributes:
        device_class: Name of the class, for messages.
        key_id: sha256 of the class's public key (its 32 bytes), hex.
        public: The X25519 public key made for this wrapping only, hex.
        wrapped: The encrypted content key with its tag, hex.
    """

    device_class: str
    key_id: str
    public: str
    wrapped: str


class Encryption(msgspec.Struct, frozen=True):
    """How the bundle's files are encrypted (see `edgekit.sealing`).

    Attributes:
        keys: The content key, wrapped once for each device class that may open the bundle.
        format: SEAL_FORMAT.
    """

    keys: tuple[WrappedKey, ...]
    format: str = SEAL_FORMAT


class Manifest(msgspec.Struct, frozen=True):
    """The signed description of one bundle for one target.

    Attributes:
        name, version, target: Identity of the bundle; the version is X.Y.Z.
        runtime: The runtime of the artifact: ``litert`` or ``onnxruntime``.
        files: Every file of the bundle except the manifest.
        inputs, outputs: Logical tensors and their binding to the artifact's tensors.
        golden: Limits of the self-test.
        recipe: The choices of the conversion.
        task: Meaning of the outputs.
        quality, cost: Results of the conversion; None without data.
        requires: Demands on the device, checked by compat.py: ``arch``, ``memory_mib``, ``runtime_version``.
        source_sha256: Digest of the source model.
        tools: Versions of the tools of the conversion.
        processing: Steps before and after the model; absent if clients use the model's own tensors only.
        send_inputs: ``decoded`` or ``never``: what devices may send to the cloud tier at most; absent for ``allowed``.
        encryption: Absent for plain files. Otherwise `files` has sizes and digests of the encrypted files.
        format: Format version of this document.
    """

    name: str
    version: str
    target: str
    runtime: str
    files: tuple[FileEntry, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    golden: Golden
    recipe: Recipe
    task: Task = Task()
    quality: Quality | None = None
    cost: Cost | None = None
    requires: dict[str, Any] = {}
    source_sha256: str = ""
    tools: dict[str, str] = {}
    # UNSET and not None, so that manifests without it keep their bytes and digest.
    processing: Processing | msgspec.UnsetType = msgspec.UNSET
    send_inputs: Literal["decoded", "never"] | msgspec.UnsetType = msgspec.UNSET
    encryption: Encryption | msgspec.UnsetType = msgspec.UNSET
    format: int = MANIFEST_FORMAT

    def file(self, role: str) -> FileEntry:
        """The one file with `role`.

        Raises:
            ManifestError: There is no such file.
        """
        for entry in self.files:
            if entry.role == role:
                return entry
        raise ManifestError(f"bundle {self.name} {self.version} has no file with role {role!r}")

    @property
    def may_send(self) -> str:
        """The inputs that devices may send to the cloud tier: ``allowed``, ``decoded`` or ``never``."""
        return self.send_inputs if isinstance(self.send_inputs, str) else "allowed"

    @property
    def takes_bytes(self) -> bool:
        """True for a bundle whose clients may send bytes, which it decodes."""
        return isinstance(self.processing, Processing) and bool(self.processing.before)

    @property
    def sealed(self) -> Encryption | None:
        """How the files are encrypted; None for plain files."""
        return self.encryption if isinstance(self.encryption, Encryption) else None

    @property
    def total_bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(entry.size for entry in self.files)

    def canonical_bytes(self) -> bytes:
        """Sorted keys, no spaces, UTF-8: the bytes that are signed and hashed."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def digest(self) -> str:
        """The bundle digest: sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()


def file_entry(path: str, role: str, data: bytes) -> FileEntry:
    """The FileEntry of a bundle's file `path` with content `data`."""
    view = memoryview(data)
    blocks = tuple(hashlib.sha256(view[at : at + BLOCK_BYTES]).hexdigest() for at in range(0, len(data), BLOCK_BYTES))
    return FileEntry(path=path, role=role, size=len(data), sha256=hashlib.sha256(data).hexdigest(), blocks=blocks)


def target_path(name: str, target: str, version: str) -> str:
    """The TUF targets path of a bundle's manifest."""
    return f"models/{name}/{target}/{version}/{MANIFEST_NAME}"


# Built at import, because the first decoding of a type in two threads at once crashes in msgspec 0.22.
_DECODER = msgspec.json.Decoder(Manifest)


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        ManifestError: It is too large, not JSON, or not canonical, or fields are missing or have a wrong type, or a
            name, size or digest is unsafe. The message names all faults.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest is {len(data)} bytes, the limit is {MAX_MANIFEST_BYTES}")
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecipeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"manifest cannot be parsed: {error}") from error
    faults = manifest_faults(manifest)
    if not faults and manifest.canonical_bytes() != data:
        faults.append("it is not in canonical form (sorted keys, no spaces, known fields only)")
    if faults:
        raise ManifestError("manifest is not valid: " + "; ".join(faults))
    return manifest


def manifest_faults(manifest: Manifest) -> list[str]:
    """Every reason why `manifest` is not valid; empty if it is valid."""
    faults = []
    if manifest.format != MANIFEST_FORMAT:
        faults.append(f"format is {manifest.format}, this edgekit reads {MANIFEST_FORMAT}")
    if not NAME_PATTERN.fullmatch(manifest.name):
        faults.append(f"name {manifest.name!r} is not of the form {NAME_PATTERN.pattern}")
    if not NAME_PATTERN.fullmatch(manifest.target):
        faults.append(f"target {manifest.target!r} is not of the form {NAME_PATTERN.pattern}")
    if not VERSION.fullmatch(manifest.version):
        faults.append(f"version {manifest.version!r} is not of the form X.Y.Z")
    faults += (
        _file_faults(manifest.files) + binding_faults(manifest.inputs, manifest.outputs) + _processing_faults(manifest)
    )
    return faults + (_encryption_faults(manifest.sealed, manifest.files) if manifest.sealed else [])


def _file_faults(files: tuple[FileEntry, ...]) -> list[str]:
    faults = []
    if len(files) > MAX_FILES:
        faults.append(f"{len(files)} files, the limit is {MAX_FILES}")
    seen: set[str] = set()
    for entry in files:
        if not FILE_PATH.fullmatch(entry.path) or entry.path.lower() == MANIFEST_NAME:
            faults.append(f"file name {entry.path!r} is not a plain file name")
        if entry.path.lower() in seen:
            faults.append(f"file name {entry.path!r} is listed twice (upper and lower case count as the same)")
        seen.add(entry.path.lower())
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            faults.append(f"{entry.path}: size {entry.size} is outside 0 to {MAX_FILE_BYTES}")
            continue
        expected = -(-entry.size // BLOCK_BYTES)
        if len(entry.blocks) != expected:
            faults.append(
                f"{entry.path}: {len(entry.blocks)} block digests for {entry.size} bytes, expected {expected}"
            )
        if not all(SHA256.fullmatch(digest) for digest in (entry.sha256, *entry.blocks)):
            faults.append(f"{entry.path}: a digest is not 64 hex digits")
    for role in (ROLE_MODEL, ROLE_GOLDEN):
        if sum(entry.role == role for entry in files) != 1:
            faults.append(f"there must be exactly one file with role {role!r}")
    return faults


def _processing_faults(manifest: Manifest) -> list[str]:
    if not isinstance(manifest.processing, Processing):
        return []
    inputs, outputs = client_inputs(manifest.inputs), client_outputs(manifest.inputs, manifest.outputs)
    listed = {entry.path for entry in manifest.files if entry.role == ROLE_PROCESSING}
    missing = sorted(manifest.processing.files().keys() - listed)
    return processing_faults(manifest.processing, inputs, outputs) + [
        f"processing reads {name!r}, but no file with role {ROLE_PROCESSING!r} has this name" for name in missing
    ]


def _encryption_faults(encryption: Encryption, files: tuple[FileEntry, ...]) -> list[str]:
    if encryption.format != SEAL_FORMAT:
        return [f"it is sealed as {encryption.format!r}, this edgekit opens {SEAL_FORMAT}"]
    faults = [f"{entry.path}: {entry.size} bytes, a sealed file has at least 16" for entry in files if entry.size < 16]
    if not 1 <= len(encryption.keys) <= MAX_CLASSES:
        faults.append(f"it is sealed for {len(encryption.keys)} device classes, expected 1 to {MAX_CLASSES}")
    if len({key.key_id for key in encryption.keys}) != len(encryption.keys):
        faults.append("it is sealed twice for the same device class")
    for key in encryption.keys:
        if not NAME_PATTERN.fullmatch(key.device_class):
            faults.append(f"device class {key.device_class!r} is not of the form {NAME_PATTERN.pattern}")
        elif not (SHA256.fullmatch(key.key_id) and SHA256.fullmatch(key.public) and _WRAPPED.fullmatch(key.wrapped)):
            faults.append(f"the key for device class {key.device_class!r} is malformed")
    return faults

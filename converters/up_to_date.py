"""Detects bundles that an earlier run wrote from the same inputs. Then nothing is done, and no library is loaded.

The record lies in the cache and not in the bundle, because a bundle does not name the machine that made it. The key is
the digest of all inputs of a conversion; the value holds the digests of the manifests that were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from converters.cache import Cache, CacheScope, origin_of, this_processor
from converters.options import ConversionOptions
from converters.report.report import Report, parse_report
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.bundle.targets import find_target, known_targets
from edgekit.errors import EdgekitError
from edgekit.versions import versions_of

UP_TO_DATE = "Bundles are up to date; nothing to do (--no-cache rebuilds)."
REPORT = "report.json"
READ_BYTES = 1 << 20
RECORD = ("written bundles",)  # the key in the cache scope
# The versions of these packages are part of the inputs.
ORIGIN_PACKAGES = (
    "ai-edge-litert", "litert-quantizer", "edgekit", "flatbuffers", "jinja2", "keras", "msgspec", "numpy", "onnx",
    "onnxruntime", "onnxscript", "onnxslim", "pillow", "scipy", "tensorflow", "tensorflow-cpu", "tf2onnx",
    "tflite-runtime", "torch",
)  # fmt: skip


class WrittenBundles(msgspec.Struct, frozen=True):
    """The sha256 of each manifest that a conversion wrote, by the name of the bundle's folder, in target order."""

    bundles: dict[str, str]


class ConversionRequest:
    """One call of `convert`, compared with earlier calls by the digest of its inputs.

    These requests are always converted again, because changes in them cannot be detected: metrics that are a function
    of the user, targets with an accelerator (whose compiler may be installed or removed), and ONNX models that keep
    weights in other files.

    Args:
        cache: Holds the records of earlier conversions; None disables them.
        model: The source model.
        options: The options of the conversion.
    """

    def __init__(self, cache: Cache | None, model: str | Path, options: ConversionOptions) -> None:
        self._model = Path(model)
        self._options = options
        self._cache = cache
        self._digest = self._inputs_digest() if cache is not None else None

    def reports(self) -> list[Report] | None:
        """The reports, where all bundles of this request exist and are unchanged since they were written; else None."""
        record = self._cache_scope().get(RECORD, WrittenBundles)
        if record is None:
            return None
        output = Path(self._options.output)
        reports = [_report(output / name, digest) for name, digest in record.bundles.items()]
        whole = [report for report in reports if report is not None]
        return whole if len(whole) == len(reports) else None

    def record(self, reports: list[Report]) -> None:
        """Record the written bundles, unless an input file changed during the conversion."""
        if self._digest is None or self._inputs_digest() != self._digest:
            return
        folders = [Path(report.bundle) for report in reports]
        manifests = {
            folder.name: hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest() for folder in folders
        }
        self._cache_scope().put(RECORD, WrittenBundles(manifests))

    def _cache_scope(self) -> CacheScope:
        return CacheScope(self._cache if self._digest else None, self._digest or "")

    def _inputs_digest(self) -> str | None:
        """Digest of all inputs of the request; None where a change could not be detected or a file cannot be read."""
        options = self._options
        if options.own_code:
            return None
        try:
            table = Path(options.targets_file).read_text(encoding="utf-8") if options.targets_file is not None else None
            profiles = known_targets(table)
            targets = [find_target(name, profiles) for name in options.targets]
            if any(profile.accelerator for profile in targets) or _has_other_files(self._model):
                return None
            data = [_digest(Path(file)) if file is not None else None for file in (options.data, options.test)]
            steps = str(options.preprocess or "")
            preprocess = [steps] if steps in ("", "auto") else [Path(steps).name, *_steps_files(Path(steps))]
            model = [self._model.name, self._model.resolve().name, _digest(self._model)]
        except (OSError, UnicodeDecodeError, EdgekitError):  # the conversion itself reports the fault
            return None
        files = {"targets", "targets_file", "data", "test", "preprocess", "output"}
        others = {name: getattr(options, name) for name in options.__struct_fields__ if name not in files}
        return origin_of("request", model, data, preprocess, targets, others, _versions(), this_processor())


def replacement_reason(folder: Path, manifest: Manifest, report: Report) -> str:
    """Why the bundle in `folder` differs from the new one that is about to replace it; empty where there is no reason.

    Args:
        folder: The folder of a bundle; it may not exist yet.
        manifest: Manifest of the new bundle.
        report: Report of the new bundle.
    """
    if not folder.exists():
        return ""
    with contextlib.suppress(OSError, EdgekitError):
        data = (folder / MANIFEST_NAME).read_bytes()
        if data == manifest.canonical_bytes():
            return ""
        old = _read(folder, parse_manifest(data))
        if old is not None:
            return _differences(old, report)
    return "it was damaged or changed"


def _differences(old: Report, new: Report) -> str:
    choices = ("name", "version", "runtime", "metric", "aim", "budget", "preprocess", "send_inputs")
    differs_by = {
        "another model": old.source.sha256 != new.source.sha256,
        "other samples": (old.data, old.split) != (new.data, new.split),
        "other options": any(getattr(old, name) != getattr(new, name) for name in choices)
        or (old.pruning and old.pruning.asked) != (new.pruning and new.pruning.asked),
        "other versions of tools": old.tools != new.tools,
    }
    differing = [name for name, differs in differs_by.items() if differs]
    return f"it was made from {', '.join(differing)}" if differing else ""


def _report(folder: Path, digest: str) -> Report | None:
    """The report of the bundle whose manifest has this digest; None where it is missing, changed or incomplete."""
    with contextlib.suppress(OSError, EdgekitError):
        data = (folder / MANIFEST_NAME).read_bytes()
        if hashlib.sha256(data).hexdigest() == digest:
            report = _read(folder, parse_manifest(data))
            return msgspec.structs.replace(report, bundle=str(folder)) if report is not None else None
    return None


def _read(folder: Path, manifest: Manifest) -> Report | None:
    """The report of a bundle that holds exactly the files of `manifest`; None where it holds others."""
    wanted = {entry.path: entry.sha256 for entry in manifest.files}
    if {path.name for path in folder.iterdir()} != {*wanted, MANIFEST_NAME}:
        return None
    if any(_digest(folder / name) != digest for name, digest in wanted.items()):
        return None
    with contextlib.suppress(msgspec.MsgspecError):
        return parse_report((folder / REPORT).read_bytes())
    return None


def _digest(path: Path) -> str:
    """sha256 of a file, or of all files below a folder with their names. Raises OSError."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(_files(path)):
        if file != path:
            digest.update(
                file.relative_to(path).as_posix().encode() + b"\0" + str(file.stat().st_size).encode() + b"\0"
            )
        with file.open("rb") as stream:
            while block := stream.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, symbolic links included. A folder that links lead to twice is read once."""
    visited = set()
    for path, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(path)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        yield from (Path(path) / name for name in names)


def _raise(error: OSError) -> None:
    raise error


def _has_other_files(model: Path) -> bool:
    """True for an ONNX model that may keep weights in other files: it contains the key that names them."""
    return model.suffix == ".onnx" and b"location" in model.read_bytes()


def _steps_files(path: Path) -> list[str]:
    """Digests of a file of preprocessing steps and of every existing file that it names."""
    try:
        pending = [msgspec.toml.decode(path.read_bytes())]
    except msgspec.MsgspecError as error:
        raise OSError(f"{path} is not valid TOML") from error
    digests = [_digest(path)]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str) and (path.parent / value).is_file():
            digests.append(_digest(path.parent / value))
    return digests


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions_of(ORIGIN_PACKAGES)}

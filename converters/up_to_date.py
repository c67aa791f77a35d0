"""What an earlier run wrote for the very same request: then there is nothing to do, and nothing heavy is loaded.

The receipt lies in the cache and not in the bundle, whose bytes need not say which machine made it: under the digest of
all that a conversion starts from, the digests of the manifests that it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from converters.cache import Cache, CacheScope, origin_of, this_processor
from converters.report.report import Report
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.bundle.targets import find_target, known_targets
from edgekit.errors import EdgekitError
from edgekit.versions import versions_of

THERE = "everything was there already, made from the very same: nothing was done (--no-cache makes it anew)"
REPORT = "report.json"
OUTPUT = "bundles"  # as make_plan
BLOCK = 1 << 20
# All that has a part in what comes out.
PACKAGES = (
    "ai-edge-litert", "ai-edge-quantizer", "edgekit", "flatbuffers", "jinja2", "keras", "msgspec", "numpy", "onnx",
    "onnxruntime", "onnxscript", "onnxslim", "pillow", "scipy", "tensorflow", "tensorflow-cpu", "tf2onnx",
    "tflite-runtime", "torch",
)  # fmt: skip


class WrittenBundles(msgspec.Struct, frozen=True):
    """The sha256 of each manifest that a run wrote, by the name of the bundle's folder, in the order of targets."""

    bundles: dict[str, str]


class Request:
    """One call of `convert`.

    A request is never the same as another where that cannot be told: with a metric of the user's own, whose code may
    have changed, a target whose compiler may have come or gone, or an ONNX model that keeps weights in other files.

    Args:
        cache: Where receipts are; None for nowhere.
        model: The source model.
        choices: As `make_plan` takes them.
    """

    def __init__(self, cache: Cache | None, model: str | Path, choices: Mapping[str, Any]) -> None:
        self._model = Path(model)
        self._choices = {name: value for name, value in choices.items() if value is not None and name != "output"}
        self._output = Path(choices.get("output") or OUTPUT)
        self._cache = cache
        self._origin = self._told() if cache is not None else None

    def reports(self) -> list[Report] | None:
        """The reports of the bundles, where all are there, whole, and as they were written; None where not."""
        receipt = self._cache_scope().get(("receipt",), WrittenBundles)
        if receipt is None:
            return None
        found = [_report(self._output / name, digest) for name, digest in receipt.bundles.items()]
        whole = [report for report in found if report is not None]
        return whole if len(whole) == len(found) else None

    def done(self, reports: list[Report]) -> None:
        """Keep a receipt for what was written, unless a file that it was made from has changed meanwhile."""
        if self._origin is None or self._told() != self._origin:
            return
        folders = [Path(report.bundle) for report in reports]
        manifests = {
            folder.name: hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest() for folder in folders
        }
        self._cache_scope().put(("receipt",), WrittenBundles(manifests))

    def _cache_scope(self) -> CacheScope:
        return CacheScope(self._cache if self._origin else None, self._origin or "")

    def _told(self) -> str | None:
        """Digest of all that the request starts from; None where it cannot be told."""
        choices = dict(self._choices)
        if ":" in str(choices.get("metric", "")):
            return None
        try:
            table = choices.pop("targets_file", None)
            profiles = known_targets(Path(table).read_text(encoding="utf-8") if table is not None else None)
            targets = [find_target(name, profiles) for name in choices.pop("targets", ())]
            if any(profile.accelerator for profile in targets) or _has_other_files(self._model):
                return None
            files = {name: _digest(Path(choices.pop(name))) for name in ("data", "test") if name in choices}
            steps = str(choices.pop("preprocess", ""))
            told = [steps] if steps in ("", "auto") else [Path(steps).name, *_steps_files(Path(steps))]
            names = [self._model.name, self._model.resolve().name, _digest(self._model)]
        except (OSError, UnicodeDecodeError, EdgekitError):  # whoever loads it says what is wrong with it
            return None
        return origin_of("request", names, files, told, targets, choices, _versions(), this_processor())


def made_from_others(folder: Path, manifest: Manifest, report: Report) -> str:
    """What the bundle in `folder` was made from that `manifest`, about to replace it, was not; empty where nothing.

    Args:
        folder: Of a bundle, or where nothing is yet.
        manifest: Of the new bundle.
        report: Of the new bundle.
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
    return "it was damaged, or had been changed"


def _differences(old: Report, new: Report) -> str:
    asked = ("name", "version", "runtime", "metric", "aim", "budget", "preprocess")
    found = {
        "another model": old.source.sha256 != new.source.sha256,
        "other samples": (old.data, old.split) != (new.data, new.split),
        "other choices": any(getattr(old, name) != getattr(new, name) for name in asked)
        or (old.pruning and old.pruning.asked) != (new.pruning and new.pruning.asked),
        "other versions of tools": old.tools != new.tools,
    }
    differing = [name for name, differs in found.items() if differs]
    return f"it was made from {', '.join(differing)}" if differing else ""


def _report(folder: Path, digest: str) -> Report | None:
    """The report of the bundle whose manifest has this digest; None where it is not there or not whole."""
    with contextlib.suppress(OSError, EdgekitError):
        data = (folder / MANIFEST_NAME).read_bytes()
        if hashlib.sha256(data).hexdigest() == digest:
            found = _read(folder, parse_manifest(data))
            return msgspec.structs.replace(found, bundle=str(folder)) if found is not None else None
    return None


def _read(folder: Path, manifest: Manifest) -> Report | None:
    """The report of a bundle that holds exactly the files of `manifest`; None where it does not."""
    wanted = {entry.path: entry.sha256 for entry in manifest.files}
    if {path.name for path in folder.iterdir()} != {*wanted, MANIFEST_NAME}:
        return None
    if any(_digest(folder / name) != digest for name, digest in wanted.items()):
        return None
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
    return None


def _digest(path: Path) -> str:
    """sha256 of a file, or of all files below a folder with their names. Raises OSError."""
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(_files(path)):
        if file != path:
            found.update(file.relative_to(path).as_posix().encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                found.update(block)
    return found.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, also behind links; a link back is gone into once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in names)


def _raise(error: OSError) -> None:
    raise error


def _has_other_files(model: Path) -> bool:
    """True for an ONNX model that may keep weights in files beside it, by the key that names them."""
    return model.suffix == ".onnx" and b"location" in model.read_bytes()


def _steps_files(path: Path) -> list[str]:
    """Digests of a file of steps and of every file that a text in it may name."""
    try:
        pending = [msgspec.toml.decode(path.read_bytes())]
    except msgspec.MsgspecError as error:
        raise OSError(f"{path} is no TOML") from error
    found = [_digest(path)]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str) and (path.parent / value).is_file():
            found.append(_digest(path.parent / value))
    return found


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions_of(PACKAGES)}

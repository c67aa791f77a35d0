"""Opens the bundles of a calibration, and writes the certified bundle: the same artifact, one file more."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from converters.bundle import require_writable, with_files, write_bundle
from converters.candidates.candidate import HOST_PROVIDERS, run_rows
from converters.cascade.calibrate import Calibration, Promise, Run, calibrate
from converters.cascade.page import with_section, with_version
from converters.cascade.record import with_cascade
from converters.compare import bundle_interface, stated_like
from converters.data.image_folders import load_originals
from converters.data.samples import Samples, load_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends import load_model
from converters.graph.interface import sample_spec
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_MODEL, ROLE_REPORT, VERSION, Manifest
from edgekit.bundle.sample_rows import run_bytes
from edgekit.bundle.state import client_inputs
from edgekit.bundle_folder import check_bundle
from edgekit.certificate.document import CERTIFICATE_NAME, ORIGINAL, ROLE_CERTIFICATE, Bound, processing_digest
from edgekit.decoding import open_processor
from edgekit.errors import DataError, RefusedError
from edgekit.preprocess import Processing, Raw, output_labels, raw_inputs
from edgekit.runtimes import open_runtime
from edgekit.tensors import Array
from edgekit.versions import runtime_version

BYTES_ROWS, MOST_BYTES = 32, 2**23  # of original samples in one call
PAGE, REPORT = "report.html", "report.json"


class Tier(msgspec.Struct, frozen=True):
    """A cloud model.

    Attributes:
        name: Its name in the tier, or that of its file.
        digest: Of its bundle, or of the file, hex.
        run: Runs it.
        format: Of the file; empty for a bundle or a tier.
    """

    name: str
    digest: str
    run: Run
    format: str = ""


def read_bundle(path: Path, role: str) -> Manifest:
    """The manifest of a bundle for the role ``edge`` or ``cloud``.

    Raises:
        DataError: there is no bundle, or it is sealed.
        ManifestError: its manifest is not valid, or a file is missing or was changed since it was converted.
    """
    if not (path / MANIFEST_NAME).is_file():
        raise DataError(
            f"--{role} {path} is not a bundle",
            advice="A certificate is bound to the digests of what runs: convert the model first.",
        )
    manifest = check_bundle(path)
    if manifest.sealed is not None:
        raise DataError(f"--{role} {path} is sealed", advice="Calibrate the plain bundle, then publish it sealed.")
    return manifest


@contextlib.contextmanager
def bundle_tier(path: Path, raw: str = "") -> Iterator[Tier]:
    """A bundle in place of the cloud tier that will serve it; runs on this machine.

    Args:
        path: Folder of the bundle.
        raw: Name under which it gets the original bytes of samples, which it decodes; empty for tensors.

    Raises:
        DataError: it does not decode such bytes.
    """
    manifest = read_bundle(path, "cloud")
    with _running(manifest, path) as run:
        yield Tier(manifest.name, manifest.digest, _decoding(manifest, path, raw, run) if raw else run)


def _decoding(manifest: Manifest, folder: Path, raw: str, run: Run) -> Run:
    """`run` for original bytes, decoded with the bundle's own steps."""
    processor = open_processor(manifest, folder)
    names = [one.name for one in processor.raw] if processor else []
    if processor is None or raw not in names:
        raise DataError(
            f"--cloud {folder} takes no bytes as {raw!r}; it takes {', '.join(map(repr, names)) or 'none'}",
            advice="Convert the cloud model with --preprocess and the same raw name, or leave --cloud-inputs out.",
        )
    outputs = [one.spec.name for one in manifest.outputs]

    def decoded(samples: Mapping[str, Array]) -> dict[str, Array]:
        return run(processor.convert_rows(raw, samples[raw].tolist()))

    return lambda samples: run_bytes(decoded, outputs, samples, rows=BYTES_ROWS, most_bytes=MOST_BYTES)


def raw_name(manifest: Manifest) -> str:
    """The name under which clients send images to the edge bundle.

    Raises:
        DataError: it takes no images, or more than one.
    """
    raws: tuple[Raw, ...] = ()
    if isinstance(manifest.processing, Processing):
        raws = raw_inputs(manifest.processing, client_inputs(manifest.inputs))
    if len(raws) != 1 or raws[0].kind != "image":
        found = ", ".join(f"{raw.name} ({raw.kind})" for raw in raws) or "none"
        raise DataError(
            f"--cloud-inputs original is for bundles that take one image as bytes; {manifest.name} takes {found}",
            advice="Leave --cloud-inputs out; the device then sends decoded tensors.",
        )
    return raws[0].name


@contextlib.contextmanager
def model_tier(path: Path, edge: Manifest) -> Iterator[Tier]:
    """A source model, run by its own framework, in place of a server of the same file.

    Raises:
        DataError: there is no such file, or it has other inputs than the edge bundle.
        ModelFormatError, UnsupportedOpError: it cannot be read.
    """
    if not path.exists():
        raise DataError(f"--cloud {path} does not exist", advice="Give a bundle, a model file, or the URL of a tier.")
    interface = bundle_interface(edge)
    with TensorFlowProcess() as child:
        source = load_model(path, child, stated_like([edge]))
        theirs = {one.spec.name: one.spec for one in source.graph.interface.inputs}
        ours = {one.spec.name: one.spec for one in interface.inputs}
        faults = [f"input {name!r} is missing" for name in theirs.keys() ^ ours.keys()]
        faults += [
            f"input {name!r} is {spec.dtype.value}{spec.shape_text}, the edge bundle's is "
            f"{ours[name].dtype.value}{ours[name].shape_text}"
            for name, spec in theirs.items()
            if name in ours and (spec.dtype, spec.shape[1:]) != (ours[name].dtype, ours[name].shape[1:])
        ]
        if faults:
            raise DataError(
                f"--cloud {path} has other inputs than the edge bundle: {'; '.join(sorted(faults))}",
                advice="Both models get the same samples.",
            )
        yield Tier(path.name, source.sha256, source.answers, source.format)


def certify_bundle(
    edge: Path,
    tier: Tier,
    promise: Promise,
    data: Path,
    unlabelled: Path | None,
    version: str,
    output: Path | None,
    raw: str = "",
) -> tuple[Path, Calibration]:
    """Certify an edge bundle with a cloud tier, and write the bundle of the new version.

    Args:
        edge: Folder of the edge bundle.
        tier: The cloud model.
        promise: What is to be proven.
        data, unlabelled: Held-out samples, and more whose labels are not used; None for none.
        version: Version of the new bundle; empty for the next patch version.
        output: Folder of the new bundle's folder; None for that of the edge bundle.
        raw: Name under which the tier gets the original bytes of the samples; empty where it gets the edge bundle's
            tensors.

    Raises:
        DataError: a bundle or the data cannot be used.
        RefusedError: the target is not proven, or the tier reports no digest.
    """
    manifest = read_bundle(edge, "edge")
    if manifest.task.kind != "classification":
        raise DataError(
            f"the task of {manifest.name} is {manifest.task.kind!r}: certificates are for classification",
            advice="Convert the model with --task classification if its output holds scores of classes.",
        )
    if not tier.digest:
        raise RefusedError(
            "the cloud tier reports no digest of its model, so nobody could notice that the model has changed",
            advice="It can serve without a certificate; edgekit cloud serve reports the digest.",
        )
    new = msgspec.structs.replace(manifest, version=version or _next(manifest.version))
    if not VERSION.fullmatch(new.version):
        raise DataError(f"version {new.version!r} is not of the form X.Y.Z")
    folder = output or edge.absolute().parent
    name = f"{new.name}-{new.version}-{new.target}"
    if require_writable(folder, name).exists():
        raise DataError(f"{folder / name} exists", advice="Give another --version, or another folder with -o.")
    bound = Bound(
        manifest.file(ROLE_MODEL).sha256,
        processing_digest(manifest),
        manifest.runtime,
        runtime_version(manifest.runtime),
        tier.name,
        tier.digest,
        tier.format or msgspec.UNSET,
        ORIGINAL if raw else msgspec.UNSET,
    )
    with _running(manifest, edge) as run:
        samples, more = (None if one is None else _samples(one, manifest, edge, raw) for one in (data, unlabelled))
        assert samples is not None
        result = calibrate(promise, manifest.task, run, tier.run, samples, more, bound)
    files = {entry.path: (entry.role, (edge / entry.path).read_bytes()) for entry in manifest.files}
    files[CERTIFICATE_NAME] = (ROLE_CERTIFICATE, result.certificate.canonical_bytes())
    if REPORT in files:
        files[REPORT] = (ROLE_REPORT, with_cascade(files[REPORT][1], result, new.version))
    if PAGE in files:
        page = with_version(files[PAGE][1], new.name, manifest.version, new.version)
        files[PAGE] = (ROLE_REPORT, with_section(page, result))
    return write_bundle(folder, name, with_files(new, files), files), result


def _samples(path: Path, manifest: Manifest, edge: Path, raw: str) -> Samples:
    if raw and path.is_file():
        raise DataError(
            f"{path} holds tensors, and --cloud-inputs original needs the bytes of images",
            advice="Give a folder of images with one sub-folder for each class.",
        )
    interface = bundle_interface(manifest)
    specs = [sample_spec(one.spec) for one in interface.inputs if one.in_graph]
    processor = open_processor(manifest, edge) if path.is_dir() else None
    classes = _classes(manifest)
    samples = load_samples(path, specs, processor, classes, interface)
    _check_by_chance(path, samples)
    return msgspec.structs.replace(samples, originals={raw: load_originals(path, classes)}) if raw else samples


def _classes(manifest: Manifest) -> Sequence[str]:
    """Names of the classes in the model's order; empty where the bundle does not have them."""
    if manifest.task.labels or not isinstance(manifest.processing, Processing):
        return manifest.task.labels
    return next(iter(output_labels(manifest.processing).values()), ())


def _check_by_chance(path: Path, samples: Samples) -> None:
    """Refuse samples that devices kept because they are hard: a proof on them says nothing about all answers."""
    if samples.hard:
        raise DataError(
            f"{path} holds samples that devices kept as {', '.join(samples.hard)}; a certificate needs those kept by "
            "chance",
            advice="Let devices keep a share alone (edgekit device command ID collect --samples N --share 0.01, or the "
            "settings collect = [] and collect_share = 0.01); collect into a new folder.",
        )


@contextlib.contextmanager
def _running(manifest: Manifest, folder: Path) -> Iterator[Run]:
    runtime = open_runtime(manifest, folder, providers=HOST_PROVIDERS)
    try:
        yield lambda inputs: run_rows(runtime, inputs)
    finally:
        runtime.close()


def _next(version: str) -> str:
    numbers = re.split(r"\.", version)
    return ".".join([*numbers[:2], str(int(numbers[2]) + 1)])

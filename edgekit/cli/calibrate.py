"""`edgekit calibrate`: certifies the threshold between an edge bundle and a cloud model."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_GOLDEN, VERSION
from edgekit.certificate.document import ORIGINAL
from edgekit.cli.calibrate_tier import Access, access_options, remote_tier
from edgekit.cli.common.console import json_option, needs_extra, note, print_json, print_table, step
from edgekit.cli.common.native_output import native_output_hidden
from edgekit.cli.common.numbers import Number
from edgekit.errors import DataError
from edgekit.tensors import Array

if TYPE_CHECKING:
    from converters.cascade.bundles import Tier
    from converters.cascade.calibrate import Calibration
    from edgekit.bundle.manifest import Manifest

DECODED = "decoded"
DEFAULT_REGRET = 0.02
_SHARE = Number(0.0001, 0.9999)


@click.command()
@click.option("--edge", type=click.Path(path_type=Path), required=True, help="Bundle of the edge model.")
@click.option(
    "--cloud", required=True, metavar="BUNDLE|MODEL|URL", help="Bundle or file of the cloud model, or a tier's URL."
)
@click.option("--cloud-model", default="", help="Its name in the cloud tier [default: the edge bundle's name].")
@click.option(
    "--cloud-inputs",
    type=click.Choice([DECODED, ORIGINAL]),
    default=DECODED,
    show_default=True,
    help="What the cloud model gets, as the device's setting cloud_inputs says: the edge model's tensors, or the bytes "
    "of the images in --data, which it decodes itself.",
)
@access_options
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Held-out samples (.npz, .npy, images).")
@click.option("--unlabeled", type=click.Path(path_type=Path), help="More samples; labels in them are not used.")
@click.option("--accuracy", type=_SHARE, help="Prove that the pair's accuracy is at least this.")
@click.option(
    "--regret",
    type=_SHARE,
    help="Prove that at most this share of answers is kept and differs from the cloud's; needs no labels "
    f"[default: {DEFAULT_REGRET}].",
)
@click.option("--kept-accuracy", type=_SHARE, help="Prove that the accuracy of kept answers is at least this.")
@click.option("--confidence", type=Number(0.5, 0.9999), default=0.95, show_default=True, help="Of the certificate.")
@click.option("--version", "version", default="", help="Version of the new bundle [default: the next patch version].")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for it [default: that of the edge bundle]."
)
@json_option
def calibrate(
    edge: Path,
    cloud: str,
    cloud_model: str,
    cloud_inputs: str,
    access: Access,
    data: Path,
    unlabeled: Path | None,
    confidence: float,
    version: str,
    output: Path | None,
    as_json: bool,
    **targets: float | None,
) -> None:
    """Certify the score below which a device sends its answers to the cloud tier.

    The cloud model is a bundle, the URL of a tier that serves one, or a model file as `edgekit convert` takes it, which
    its own framework runs. A device claims the certificate while the tier reports the same digest: of the bundle, or of
    the file where a server of yours serves that.

    Both models run on held-out samples. One part of them fits the temperature and the score functions, one chooses
    among them, and one proves the threshold. The result is a new version of the bundle around the same artifact, with
    the file certificate.json. It holds for the two models, the preprocessing and the runtime that it was made with.

    Exits 3 and writes nothing where the target is not proven; the message says what is, and how many samples would do.

    \b
    Examples:
      edgekit calibrate --edge bundles/digits-1.0.0-raspberry-pi-4 --cloud bundles/digits-1.0.0-server
          --data held-out.npz --accuracy 0.97
      edgekit calibrate --edge bundles/digits-1.0.0-raspberry-pi-4 --cloud https://cloud.example:8700
          --data unlabeled.npy --regret 0.02
    """
    given = {name.replace("_", "-"): value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise click.UsageError(
            f"{' and '.join('--' + one for one in given)} were given; one target is proven at a time."
        )
    if version and not VERSION.fullmatch(version):
        raise click.UsageError(f"--version is {version!r}, expected X.Y.Z.")
    with needs_extra("convert"):
        from converters.cascade.bundles import certify_bundle, raw_name, read_bundle
        from converters.cascade.calibrate import Promise

    target, value = next(iter(given.items())) if given else ("regret", DEFAULT_REGRET)
    promise = Promise(target, value, confidence)
    with native_output_hidden(), contextlib.ExitStack() as stack:
        manifest = read_bundle(edge, "edge")
        raw = raw_name(manifest) if cloud_inputs == ORIGINAL else ""
        if "://" in cloud:
            first = _first_image(data, raw) if raw else _first_golden(edge, manifest)
            name = cloud_model or manifest.name
            made = remote_tier(cloud, name, access, manifest, first, original=bool(raw))
            tier = stack.enter_context(made)
        else:
            access.refuse_without_url(cloud)
            tier = stack.enter_context(_local_tier(Path(cloud), manifest, raw))
        with step("running both models and proving a threshold"):
            folder, result = certify_bundle(edge, tier, promise, data, unlabeled, version, output, raw)
    if as_json:
        print_json({"bundle": str(folder), **_values(result)})
        return
    print_table(["fact", "value"], _facts(result))
    note(f"written: {folder}")


def _local_tier(path: Path, manifest: Manifest, raw: str) -> AbstractContextManager[Tier]:
    """The cloud model: a bundle or a model file on this machine."""
    from converters.cascade.bundles import bundle_tier, model_tier

    if (path / MANIFEST_NAME).is_file():
        return bundle_tier(path, raw)
    if raw:
        raise click.UsageError(
            "--cloud is a model file, which has no preprocessing; --cloud-inputs original needs its bundle or a tier."
        )
    return model_tier(path, manifest)


def _first_golden(edge: Path, manifest: Manifest) -> dict[str, Array]:
    """One sample, with which the tier is asked for the digest of its model."""
    golden = (edge / manifest.file(ROLE_GOLDEN).path).read_bytes()
    return {name: value[:1] for name, value in read_golden(golden)[0].items()}


def _first_image(data: Path, raw: str) -> dict[str, Array]:
    """As `_first_golden`, in bytes. Raises DataError where `data` is no folder of images."""
    from converters.data.image_folders import image_files

    if not data.is_dir():
        raise DataError(
            f"--data {data} is no folder, and --cloud-inputs original needs the bytes of images",
            advice="Give a folder of images with one sub-folder for each class.",
        )
    found, first = np.empty(1, dtype=object), image_files(data)[0][0][0]
    try:
        found[0] = first.read_bytes()
    except OSError as error:
        raise DataError(f"{first} cannot be read: {error.strerror or error}") from error
    return {raw: found}


def _facts(result: Calibration) -> list[tuple[str, str]]:
    one = result.certificate
    facts = [
        ("proven", f"{one.promise}, at {one.confidence:.4g} confidence"),
        ("samples", f"{one.samples} in the proof" + (f", {one.unlabelled} without labels" if one.unlabelled else "")),
        ("score", f"{one.score.name}, temperature {one.score.temperature:.3g}"),
        ("threshold", f"{one.threshold:.6g}"),
        ("sent", f"{one.sent.value:.1%}, at most {one.sent.upper:.1%}"),
        ("kept and different", f"{one.disagreement.value:.2%} of those kept, at most {one.disagreement.upper:.2%}"),
    ]
    if isinstance(one.edge_accuracy, float) and isinstance(one.cloud_accuracy, float):
        facts.append(("accuracy", f"edge {one.edge_accuracy:.4f}, cloud {one.cloud_accuracy:.4f}"))
    if result.naive is not None:
        share = float(np.interp(result.naive, result.proof.threshold[:-1], result.proof.sent[:-1]))
        facts.append(("naive choice", f"{share:.1%} sent; it proves nothing"))
    if result.repeated:
        facts.append(("equal samples", f"{result.repeated}; fine where such inputs come again in use, not for copies"))
    if result.copies:
        facts.append(("copies", f"{result.copies} samples, left out"))
    bound = one.bound
    facts.append(("holds for", f"edge artifact {bound.edge_model[:12]}, {bound.runtime_version}"))
    facts.append(("", f"cloud model {bound.cloud_model}, digest {bound.cloud_digest[:12]}"))
    if bound.original:
        facts.append(("", 'devices with cloud_inputs = "original"'))
    return [*facts, ("served by", bound.served_by), ("certificate", one.id)]


def _values(result: Calibration) -> dict[str, Any]:
    scores = [{"name": one.function.name, "area": one.area} for one in result.tried]
    return {"id": result.certificate.id, "certificate": result.certificate, "scores": scores, "naive": result.naive}

"""`edgekit recheck`: compares a bundle on another version of its runtime, and signs the outcome as evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import json_option, needs_extra, note, print_json, print_table, step, usage
from edgekit.cli.common.native_output import native_output_hidden
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.registry.options import opened, passphrase_of, registry_options
from edgekit.errors import DataError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from converters.recheck.differences import OutputDifference
    from converters.recheck.recheck import Cost, Recheck

PLACES = ("host", "cortex-a53", "cortex-a72", "cortex-a76")
REPORT, PAGE = "recheck.json", "recheck.html"
WORDS = {"equal": "every bit is equal", "within-budget": "within the budget"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    required=True,
    metavar="PACKAGE==VERSION",
    help="The version to compare: of ai-edge-litert, onnxruntime or tflite-runtime.",
)
@click.option(
    "--on", "where", type=click.Choice(PLACES), default="host", show_default=True, help="This machine or an ARM core."
)
@click.option("--data", type=click.Path(path_type=Path), help="The conversion's --data, for its proof rows.")
@click.option(
    "--rows", type=Whole(1, 10_000_000), help="Most rows of --data [default: 10,000; 256 on an emulated core]."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help=f"Folder for {REPORT} and {PAGE}.")
@registry_options
@passphrase_option
@json_option
def recheck(
    bundle: Path,
    runtime: str,
    where: str,
    data: Path | None,
    rows: int | None,
    output: Path | None,
    url: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE on another version of its runtime with the version that it was made with.

    Both versions answer the golden samples, and with --data the proof rows of the conversion, each in a process and an
    environment of its own. Environments are made with pip in the user's cache and kept. Compared are bits, decisions,
    differences, memory, and instructions where they can be counted.

    With --registry, the outcome is signed into the catalogue as evidence. Devices with that version get it with the
    next metadata; the bundle and its digest stay.

    Exits 0 where the answers are equal or within the budget of the conversion, and 3 where they are worse or the
    version cannot run the bundle.

    \b
    Examples:
      edgekit recheck bundles/digits-1.0.0-raspberry-pi-4 --runtime ai-edge-litert==2.2.0 --data data.npz
      edgekit recheck bundles/digits-1.0.0-raspberry-pi-4 --runtime ai-edge-litert==2.2.0 --on cortex-a72
      edgekit recheck bundles/digits-1.0.0-server --runtime onnxruntime==1.32.0 --registry file://registry
    """
    with needs_extra("convert"):
        from converters.recheck.packages import parse_wanted
        from converters.recheck.recheck import recheck as compare
    with usage():
        wanted = parse_wanted(runtime)
    sign = _signer(bundle, url, keys, passphrase_file) if url is not None else None
    if output is not None:
        _make(output)
    with step(f"compare {wanted} on {'this machine' if where == 'host' else where}"), native_output_hidden():
        found = compare(bundle, wanted, where=where, data=data, rows=rows)
    report = found.to_json()
    if output is not None:
        _write(output, found, report)
    if sign is not None:
        sign(found, report)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if found.outcome not in WORDS:
        raise RefusedError(
            f"{found.name} {found.version} must not run with {found.runtime}: {'; '.join(found.reasons)}",
            advice=f"Keep {found.against} on devices with this bundle, or convert the model with another --recipe.",
        )


def _signer(
    bundle: Path, url: str | None, keys: Path | None, passphrase_file: Path | None
) -> Callable[[Recheck, bytes], None]:
    """A function that signs an outcome; whatever it needs is checked now, because a comparison takes minutes."""
    _, store, repository = opened(url, keys, passphrase_of(passphrase_file))
    with needs_extra("registry"):
        from edgekit.registry import check_bundle
        from edgekit.registry.evidence import sign_evidence
    manifest = check_bundle(bundle)
    if repository.check(manifest.canonical_bytes()) is None:
        raise NotFoundError(
            f"{manifest.name} {manifest.version} for {manifest.target} is not published in this registry",
            advice=f"Publish it first: edgekit registry publish {bundle}",
        )
    repository.check_signing(manifest.name)

    def sign(found: Recheck, report: bytes) -> None:
        package, _, version = found.runtime.partition(" ")
        entry = sign_evidence(
            store,
            repository,
            manifest,
            report,
            package=package,
            version=version,
            arch=found.arch,
            outcome=found.outcome,
            against=found.against,
            samples=found.samples,
        )
        note(f"signed: {entry.path} has {len(entry.evidence)} outcome{'s' * (len(entry.evidence) != 1)} as evidence")

    return sign


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}", advice="Choose another folder.") from error


def _write(folder: Path, found: Recheck, report: bytes) -> None:
    from converters.recheck.page import recheck_html

    try:
        (folder / REPORT).write_bytes(report)
        (folder / PAGE).write_bytes(recheck_html(found))
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}", advice="Choose another folder.") from error
    note(f"wrote {folder / REPORT} and {PAGE}")


def _print(found: Recheck) -> None:
    where = "this machine" if found.where == "host" else f"an emulated {found.where}"
    click.echo(f"{found.name} {found.version} for {found.target}: {found.runtime} against {found.against}, on {where}")
    looked = f", in {found.samples:,} samples" if found.samples else ""
    click.echo(f"outcome: {WORDS.get(found.outcome, found.outcome)}{looked}")
    if found.outputs:
        headers = ("samples", "n", "output", "bits", "changed decisions", "largest difference", "in spreads", "verdict")
        print_table(headers, [_row(one) for one in found.outputs])
    if found.before is not None and found.after is not None:
        print_table(
            ("version", "memory in MiB", "instructions"),
            [_cost_row(found.against, found.before), _cost_row(found.runtime, found.after)],
        )
    for one in found.looked:
        if one.n < one.of or one.note:
            note(f"{one.rows}: {one.n:,} of {one.of:,} rows compared{f'; {one.note}' if one.note else ''}")
    for line in found.notes:
        note(line)


def _row(one: OutputDifference) -> tuple[object, ...]:
    share = one.decisions
    changed = f"{share.count} ({share.lower:.2%} to {share.upper:.2%})" if share else "-"
    bits = "equal" if one.equal else f"{one.differing:.1%} differ"
    largest = ["-" if value is None else f"{value:.3g}" for value in (one.max_abs, one.max_spread)]
    return (one.rows, one.n, one.output, bits, changed, *largest, one.verdict)


def _cost_row(version: str, cost: Cost) -> tuple[object, ...]:
    instructions = cost.not_counted if cost.instructions is None else f"{cost.instructions:,.0f}"
    return version, f"{cost.memory_bytes / 2**20:.2f}", instructions

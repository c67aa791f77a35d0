"""`edgekit registry bom` and `edgekit registry where`: what a bundle is made of, and which devices run it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from edgekit.cli.common.console import (
    control_settings,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    printable,
)
from edgekit.cli.common.fleet import fleet_state, registry_reader
from edgekit.cli.registry.options import registry_options
from edgekit.cli.rollout.text import time_text
from edgekit.errors import DiskError, EdgekitError, NotFoundError
from edgekit.storage.files import replace_file

if TYPE_CHECKING:
    from edgekit.registry import RegistryReader, Release
    from edgekit.state import DeviceView, FleetState

REPORT = "report.json"


class Use(NamedTuple):
    """A device that has, or had, a component.

    Attributes:
        device: Name of the device.
        model, version, digest: The bundle; empty where the device itself has the component.
        what: What of the bundle or of the device it is.
        since: When that began, wall clock seconds; 0 where it is not known.
        until: The device's last message if it runs that still, else when another bundle followed; wall clock seconds.
        runs: Whether the device runs it, as last reported.
    """

    device: str
    model: str
    version: str
    digest: str
    what: str
    since: float
    until: float
    runs: bool


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--target", help="Target profile; needed where the version has bundles for several.")
@click.option("--licence", "licences", multiple=True, metavar="SPDX", help="Licence of the model (may be repeated).")
@click.option("-o", "path", type=click.Path(path_type=Path, dir_okay=False), help="File to write [default: stdout].")
@registry_options
def bom(
    name: str,
    version: str,
    target: str | None,
    licences: tuple[str, ...],
    path: Path | None,
    url: str | None,
    keys: Path | None,
) -> None:
    """Write the bill of materials of a published bundle as CycloneDX 1.6 JSON.

    It lists the files, the source model, the data's digest, the tools, the recipe and the runtime, as the signed
    manifest and the bundle's report have them. A bundle does not know its licence: give it with --licence.

    \b
    Example:
      edgekit registry bom digits 1.0.0 --target raspberry-pi-4 --licence Apache-2.0 -o digits.cdx.json
    """
    with needs_extra("controller"):
        from edgekit.registry.bom import bill_of, no_spdx
    with registry_reader(control_settings(registry=url, keys=keys)) as reader:
        release = _release(reader, name, version, target)
        report = _report(reader, release)
    if odd := no_spdx(licences):
        note(f"no SPDX ids or expressions, so they stand as names in the bill: {', '.join(map(printable, odd))}")
    text = msgspec.json.format(msgspec.json.encode(bill_of(release.manifest, licences=licences, report=report)))
    if path is None:
        click.echo(text.decode())
        return
    try:
        replace_file(path, text + b"\n")
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}") from error
    note(f"{path} has the bill of materials of {name} {version} for {release.manifest.target}")


def _release(reader: RegistryReader, name: str, version: str, target: str | None) -> Release:
    rows = [row for row in reader.list(name) if row.version == version]
    if not rows:
        raise NotFoundError(f"the registry has no {name} {version}", advice="See: edgekit registry list")
    targets = sorted(row.target for row in rows)
    if target is None and len(rows) > 1:
        raise click.UsageError(f"{name} {version} is for {', '.join(targets)}; choose one with --target.")
    found = [row for row in rows if target in (None, row.target)]
    if not found:
        raise NotFoundError(f"{name} {version} has no bundle for {target!r}", advice=f"It is for {', '.join(targets)}.")
    return reader.load(found[0])


def _report(reader: RegistryReader, release: Release) -> dict[str, Any] | None:
    """The bundle's report; None where it has none that can be read, as in a sealed bundle."""
    entry = next((one for one in release.manifest.files if one.path == REPORT), None)
    if entry is None or release.manifest.sealed is not None:
        return None
    try:
        found = msgspec.json.decode(reader.read(entry))
    except (EdgekitError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        note(f"the report of the bundle cannot be read, so digests of data are missing: {error}")
        return None
    return found if isinstance(found, dict) else None


@click.command()
@click.argument("component", metavar="DIGEST|COMPONENT")
@registry_options
@json_option
def where(component: str, url: str | None, keys: Path | None, as_json: bool) -> None:
    """List the devices that run a component, or ran it, with dates.

    A component is a digest or its first 8 characters (of a bundle, a file or a source model), a model, a tool of the
    conversion, or a runtime; names may have a version: tensorflow==2.21.0.

    \b
    Examples:
      edgekit registry where 9f86d081884c
      edgekit registry where onnxruntime==1.31.1 --json
    """
    from edgekit.registry.components import SHORTEST_DIGEST, matches

    if not component.strip():
        raise click.UsageError("Name a digest, a model, a tool or a runtime.")
    if len(component) < SHORTEST_DIGEST and all(one in "0123456789abcdef" for one in component):
        note(f"{component} is read as a name: a digest needs {SHORTEST_DIGEST} characters")
    settings = control_settings(registry=url, keys=keys)
    with registry_reader(settings) as reader:
        found = {row.sha256: matches(reader.load(row).manifest, component) for row in reader.list()}
    bundles = {digest: what for digest, what in found.items() if what}
    with fleet_state(settings) as state:
        views = state.devices.views(time.time(), settings.offline_after_seconds)
        uses = [use for view in views for use in _uses(state, view, bundles, component)]
    if as_json:
        print_json({"bundles": bundles, "devices": [use._asdict() for use in uses]})
        return
    note(f"{len(bundles)} published bundle(s) contain {component}")
    if uses:
        rows = [
            (
                use.device,
                use.model,
                use.version,
                use.digest[:12],
                use.what,
                time_text(use.since) if use.since else "-",
                "runs" if use.runs else time_text(use.until),
            )
            for use in uses
        ]
        print_table(("device", "model", "version", "digest", "component", "since", "until"), rows)
    else:
        note("No device has reported it.")


def _uses(state: FleetState, view: DeviceView, bundles: dict[str, list[str]], component: str) -> list[Use]:
    from edgekit.registry.components import runs_runtime

    uses = []
    for model, running in sorted(view.models.items()):
        if running.digest in bundles:
            what = ", ".join(bundles[running.digest])
            uses.append(Use(view.device, model, running.version, running.digest, what, running.since, view.seen, True))
    runtimes = view.facts.get("runtimes")
    if isinstance(runtimes, dict) and (have := runs_runtime(runtimes, component)):
        uses.append(Use(view.device, "", "", "", f"runtime {', '.join(have)}", 0.0, view.seen, True))
    return uses + _past(state, view, bundles)


def _past(state: FleetState, view: DeviceView, bundles: dict[str, list[str]]) -> list[Use]:
    """Bundles that the device deployed and runs no more, from its events; older events than it keeps are unknown."""
    running = {one.digest for one in view.models.values()}
    deployed: dict[str, list[tuple[float, str, str]]] = {}
    for event in reversed(state.devices.events(view.device, 500)):
        digest = event.detail.get("digest")
        if event.kind == "deployment-succeeded" and isinstance(digest, str):
            deployed.setdefault(event.model, []).append((event.at, digest, str(event.detail.get("version", ""))))
    uses = []
    for model, steps in deployed.items():
        ends = [at for at, _, _ in steps[1:]] + [view.seen]
        for (at, digest, version), end in zip(steps, ends, strict=True):
            if digest in bundles and digest not in running:
                uses.append(Use(view.device, model, version, digest, ", ".join(bundles[digest]), at, end, False))
    return uses

"""`edgekit profile`: instructions, memory and time of a bundle's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import json_option, needs_extra, note, print_json, print_table, step
from edgekit.cli.common.native_output import native_output_hidden
from edgekit.cli.common.numbers import Seconds, Whole
from edgekit.cli.device.profile import profile_on_device
from edgekit.cli.device.results import report_answers

if TYPE_CHECKING:
    from converters.cost.profile import Profile

PLACES = ("cortex-a53", "cortex-a72", "cortex-a76", "host")
SHOWN_LAYERS = 30


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--on", "where", type=click.Choice(PLACES), help="An emulated ARM core, or this machine.")
@click.option("--device", metavar="ID", help="A device of the fleet; the bundle must be published.")
@click.option("--seconds", type=Seconds(0.1, 60), default=5.0, show_default=True, help="--device: how long runs take.")
@click.option(
    "--memory-mib", type=Whole(16, 1_048_576), default=1024, show_default=True, help="--device: memory limit in MiB."
)
@click.option("--expires", type=Seconds(1, 86_400), default=600.0, show_default=True, help="--device: longest wait.")
@click.option(
    "--limit",
    type=Seconds(1, 86_400),
    help="--on: longest time of the measurement, also as 15m or 2h [default: 30m here, 2h emulated].",
)
@json_option
def profile(
    bundle: Path,
    where: str | None,
    device: str | None,
    seconds: float,
    memory_mib: int,
    expires: float,
    limit: float | None,
    as_json: bool,
) -> None:
    """Measure one inference: instructions and memory on an ARM core, or time and memory here or on a device.

    An ARM core is emulated: the runtime's real aarch64 package runs there, and its instructions are counted. Emulated
    time says nothing about a board, so it is not shown. The emulator is set up by `make arm` in a source tree, and by
    `python -m converters.cost.emulated.prepare` elsewhere.

    \b
    Examples:
      edgekit profile bundles/digits-1.0.0-raspberry-pi-4 --on cortex-a72
      edgekit profile bundles/digits-1.0.0-raspberry-pi-4 --on host --json
      edgekit profile bundles/digits-1.0.0-raspberry-pi-4 --device pi-1
    """
    if (where is None) == (device is None):
        raise click.UsageError("Give either --on PLACE or --device ID.")
    if device is not None:
        limits = {"seconds": seconds, "memory_mib": memory_mib}
        answer = profile_on_device(bundle, device, limits, expires)
        report_answers([answer], expires, as_json=as_json, alone=True)
        if as_json:
            print_json(answer.detail)
        return
    _profile_here(bundle, str(where), limit, as_json)


def _profile_here(bundle: Path, where: str, limit: float | None, as_json: bool) -> None:
    with needs_extra("convert"):
        from converters.cost.profile import MEMORY_MEANING, profile_bundle

    with step(f"measuring on {'this machine' if where == 'host' else f'an emulated {where}'}"), native_output_hidden():
        result = profile_bundle(bundle, where, limit_seconds=limit)
    if as_json:
        print_json(result)
        return
    print_table(["fact", "value"], _facts(result))
    note(f"memory: {MEMORY_MEANING}")
    _print_layers(result)


def _facts(result: Profile) -> list[tuple[str, str]]:
    emulated = result.on != "host"
    facts = [
        ("bundle", result.bundle),
        ("on", f"{result.on}, emulated" if emulated else "this machine"),
        ("runtime", f"{result.runtime}, one thread, one row"),
    ]
    if result.instructions is None:
        facts.append(("instructions", result.not_counted))
    else:
        facts.append(("instructions", f"{result.instructions:,.0f} an inference"))
    if result.p50_ms is not None and result.p95_ms is not None:
        facts.append(
            ("time", f"{result.p50_ms:.3g} ms (p50), {result.p95_ms:.3g} ms (p95) of {result.timed_runs} runs")
        )
    facts.append(("memory", f"{result.memory_bytes / 2**20:.2f} MiB"))
    if result.estimate is not None:
        cost = result.estimate
        compared = ""
        core = f" of a {result.estimate_core}" if result.estimate_core and cost.unit == "instructions" else ""
        if core and result.instructions and result.estimate_core == result.on:
            compared = f", {cost.value / result.instructions - 1.0:+.1%} against the count"
        facts.append(("cost in the manifest", f"{cost.value:,.0f} {cost.unit}{core} ({cost.kind}{compared})"))
    return facts


def _print_layers(result: Profile) -> None:
    if result.layers is None:
        if result.no_layers:
            note(f"no layers: {result.no_layers}")
        return
    click.echo()
    total = sum(layer.instructions for layer in result.layers) or 1
    largest = sorted(result.layers, key=lambda layer: -layer.instructions)[:SHOWN_LAYERS]
    rows = [
        (layer.name, layer.kernel, f"{layer.instructions:,}", f"{layer.instructions / total:.1%}")
        for layer in result.layers
        if layer in largest
    ]
    print_table(["layer", "kernel", "instructions", "share"], rows)
    if len(result.layers) > len(rows):
        note(f"{len(result.layers) - len(rows)} smaller layers are left out; --json has all of them")

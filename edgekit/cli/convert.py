"""`edgekit convert`: one proven bundle per target."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit.bundle.recipe import PRESETS, Recipe, preset
from edgekit.cli.common.console import (
    dry_run_option,
    ending_at_the_second,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    step,
)
from edgekit.errors import RecipeError, RefusedError

if TYPE_CHECKING:
    from converters.cache import Cache
    from converters.plan import ConversionPlan
    from converters.quality.selection import Measured
    from converters.report.report import Report
    from edgekit.bundle.targets import TargetProfile


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, required=True, help="Device class; may be given several times.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Samples to calibrate, choose and prove with (.npz, .npy, or a folder of images).",
)
@click.option(
    "--preprocess",
    metavar="FILE",
    help="Steps before and after the model (.toml), carried in the bundle; or auto: tell them from its first layers.",
)
@click.option("--test", type=click.Path(path_type=Path), help="Samples that are only reported on.")
@click.option("--metric", help="accuracy, mse, mae, auc, agreement, or module:function.")
@click.option(
    "--aim", type=click.Choice(["cost", "size"]), default="cost", show_default=True, help="What to make small."
)
@click.option("--max-drop", type=float, default=0.01, show_default=True, help="Largest drop, in the metric's unit.")
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, help="Of the proof that the drop is no more."
)
@click.option("--accept-unproven", is_flag=True, help="Take the best point estimate where nothing better is proven.")
@click.option("--max-bytes", type=int, help="Largest artifact.")
@click.option("--max-cost", type=float, help="Highest cost, in the report's unit.")
@click.option(
    "--prune",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="Take away channels that are dead (0 on every calibration sample), or leave all.",
)
@click.option("--recipe", help=f"Try only this: {', '.join(PRESETS)}, or a .toml or .json file.")
@click.option("--runtime", type=click.Choice(["litert", "onnxruntime"]), help="Where a target runs both.")
@click.option("--targets-file", type=click.Path(path_type=Path), help="Target profiles of your own (.toml).")
@click.option("--name", help="Name of the bundles [default: the model's file name].")
@click.option("--version", default="1.0.0", show_default=True, help="X.Y.Z.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("bundles"), show_default=True, help="Folder."
)
@click.option("--no-cache", is_flag=True, help="Make all candidates anew, also those that earlier runs made.")
@dry_run_option
@json_option
def convert(model: Path, recipe: str | None, no_cache: bool, dry_run: bool, as_json: bool, **choices: Any) -> None:
    """Make the best proven bundle of MODEL for each target.

    MODEL is .keras, .h5, a SavedModel folder, .onnx, .pt2, or a float .tflite. Without --data, parity is measured on
    random inputs, and only float candidates are made. Exits 3 and writes nothing where no candidate meets the budget.
    Channels that are 0 for every input go; those that are 0 on all calibration samples (59 at least) go from every
    kind, and what that may lose is proven as for int8. What was made is kept under ~/.cache/edgekit (at most 1 GiB):
    after Ctrl-C, which tells what was found until then, the same command goes on from there, and where its bundles are
    there already it does nothing.

    \b
    Examples:
      edgekit convert model.keras --target raspberry-pi-4 --data data.npz
      edgekit convert model.onnx --target jetson-orin --target server --data data.npz --test test.npz
      edgekit convert model.keras --target raspberry-pi-5 --data data.npz --aim size --max-drop 0.02
      edgekit convert model.keras --target x86-64 --dry-run
      edgekit convert model.onnx --target raspberry-pi-4 --data photos/ --preprocess steps.toml
    """
    with needs_extra("convert"):
        from converters.cache import default_cache
        from converters.up_to_date import THERE, Request

    choices["recipe"] = _recipe(recipe) if recipe else None
    cache = None if no_cache else default_cache()
    request = Request(None if dry_run else cache, model, choices)
    reports = request.reports()
    there = reports is not None
    if reports is None:
        with needs_extra("convert"):
            from converters.frontends import sniff
            from converters.plan import make_plan

        plan = make_plan(model, **choices)
        if dry_run:
            _print_plan(plan, sniff(model), as_json)
            return
        reports = _run(plan, cache)
        request.done(reports)
    if as_json:
        print_json(reports)
    else:
        _print_reports(reports, "there already: " if there else "wrote ")
    if there:
        note(THERE)


def _run(plan: ConversionPlan, cache: Cache | None) -> list[Report]:
    """Do what `plan` says; where Ctrl-C ends it, say what was found until then."""
    with needs_extra("convert"):
        from converters.framework_process import TensorFlowProcess
        from converters.pipeline import run_plan
        from converters.progress import ConversionCallbacks

    found: dict[str, dict[str, Measured]] = {profile.name: {} for profile, _ in plan.profiles}
    written: list[Path] = []

    def keep(profile: TargetProfile, measured: Measured) -> None:
        found[profile.name][measured.recipe.id] = measured

    callbacks = ConversionCallbacks(step=step, found=keep, written=written.append, note=note)
    with ending_at_the_second():
        try:
            with _native_noise_hidden(), TensorFlowProcess(show_log=_verbose()) as child:
                return run_plan(plan, callbacks=callbacks, child=child, cache=cache)
        except KeyboardInterrupt:
            _print_found(plan, found)
            done = ", ".join(map(str, written)) or "nothing"
            kept = cache is not None and ":" not in (plan.metric or "")
            note(f"{done} was written" + ("; the same command goes on from here" if kept else ""))
            raise


def _print_found(plan: ConversionPlan, found: dict[str, dict[str, Measured]]) -> None:
    """What a run that was interrupted has measured, on stderr."""
    from converters.quality.selection import choose

    note("")
    for target, candidates in found.items():
        if not candidates:
            note(f"{target}: no candidate was made yet")
            continue
        try:
            chosen = choose(list(candidates.values()), plan.budget, aim=plan.aim, accept_unproven=plan.accept_unproven)
            best, verdicts = f"the best is {chosen.chosen}", chosen.verdicts
        except RefusedError:
            best, verdicts = "none meets the budget", {}
        note(f"{target}: {len(candidates)} candidates so far, of which {best}; more were to come")
        rows = [
            (
                name,
                one.bytes,
                f"{one.drop.value:.4f}" if one.drop else "-",
                f"{one.drop.upper:.4f}" if one.drop else "-",
                f"{one.cost.value:.3g}",
                verdicts.get(name, ("failed" if one.fault else "", ""))[0],
            )
            for name, one in candidates.items()
        ]
        print_table(["candidate", "bytes", "drop", "at most", "cost", "so far"], rows, err=True)


def _print_plan(plan: ConversionPlan, source: str, as_json: bool) -> None:
    rows = [
        {
            "target": profile.name,
            "runtime": runtime,
            "candidates": [recipe.id for recipe in plan.recipes(profile, runtime)],
            "bundle": str(plan.output / plan.bundle_name(profile)),
        }
        for profile, runtime in plan.profiles
    ]
    if as_json:
        print_json({"model": str(plan.model), "format": source, "targets": rows})
        return
    click.echo(f"would convert {plan.model} ({source}):")
    print_table(
        ["target", "runtime", "candidates", "bundle"],
        [(row["target"], row["runtime"], ", ".join(row["candidates"]), row["bundle"]) for row in rows],
    )


def _print_reports(reports: list[Report], what: str) -> None:
    for report in reports:
        click.echo(f"\n{report.target}: {report.chosen}, {'proven' if report.proven else 'not proven'}")
        print_table(
            ["candidate", "bytes", report.metric, "drop", "at most", "cost", "verdict", "why"],
            [
                (
                    candidate.id,
                    candidate.bytes,
                    f"{candidate.quality.value:.4f}" if candidate.quality else "-",
                    f"{candidate.drop.value:.4f}" if candidate.drop else "-",
                    f"{candidate.drop.upper:.4f}" if candidate.drop else "-",
                    f"{candidate.cost.value:.3g}",
                    candidate.verdict,
                    candidate.reason,
                )
                for candidate in report.candidates
            ],
        )
        if report.test is not None:
            click.echo(f"test ({report.test.n} samples): {report.test.chosen:.4f}, float {report.test.float_:.4f}")
        if report.pruning is not None and report.pruning.layers:
            click.echo(report.dead)
        if report.data == "random":
            note("no --data: parity was measured on random inputs, quality is unknown, int8 was not tried")
        if report.preprocess == "detected":
            note("clients may send JPEG or PNG; resizing is taken to be bilinear, else say it with --preprocess FILE")
        click.echo(f"{what}{report.bundle}")


def _recipe(text: str) -> Recipe:
    path = Path(text)
    if path.suffix not in (".toml", ".json"):
        return preset(text)
    try:
        data = path.read_bytes()
        decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        return decode(data, type=Recipe)
    except (OSError, msgspec.MsgspecError) as error:
        fields = ", ".join(Recipe.__struct_fields__)
        raise RecipeError(f"recipe {text} cannot be read: {error}", advice=f"Its keys are {fields}.") from error


def _verbose() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("verbose"))


@contextlib.contextmanager
def _native_noise_hidden() -> Iterator[None]:
    """Keep what native libraries print to the process's stderr out of the progress lines.

    Python's own stderr goes on to the terminal. With --verbose nothing is hidden.
    """
    try:
        ours = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a stand-in, as tests use
        ours = False
    if _verbose() or not ours:
        yield
        return
    python_stderr = sys.stderr
    saved = os.dup(2)
    with (
        tempfile.TemporaryFile(prefix="edgekit-native-") as log,
        os.fdopen(os.dup(saved), "w", buffering=1) as terminal,
    ):
        os.dup2(log.fileno(), 2)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(saved, 2)
            os.close(saved)

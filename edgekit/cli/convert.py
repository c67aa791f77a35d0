"""`edgekit convert`: one proven bundle per target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from edgekit.bundle.recipe import PRESETS, Recipe, preset
from edgekit.cli.common.console import (
    dry_run_option,
    end_on_second_interrupt,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
    step,
)
from edgekit.cli.common.native_output import is_verbose, native_output_hidden
from edgekit.cli.common.numbers import Number, Whole
from edgekit.cli.convert_text import print_report
from edgekit.cli.model_options import model_options, parse_model_options
from edgekit.errors import ConversionError, EdgekitError, RecipeError, RefusedError

if TYPE_CHECKING:
    from converters.cache import Cache
    from converters.plan import ConversionPlan
    from converters.quality.measured import Measured
    from converters.report.report import Report
    from edgekit.bundle.targets import TargetProfile

_Value = TypeVar("_Value", str, float)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, required=True, help="Target profile; may be given several times.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Samples for calibration, choice and proof (.npz, .npy, or a folder of images).",
)
@click.option(
    "--preprocess",
    metavar="FILE",
    help="Preprocessing steps (.toml), packed into the bundle; or auto: detect them from the model's first layers.",
)
@click.option("--test", type=click.Path(path_type=Path), help="Samples that are only reported on, never chosen by.")
@click.option(
    "--metric",
    multiple=True,
    metavar="[OUTPUT=]NAME",
    help="accuracy, label-accuracy, mse, mae, auc, agreement, or module:function; OUTPUT=NAME for another output.",
)
@click.option(
    "--task",
    metavar="KIND[:SCORES]",
    help="What the scores are: classification, multilabel or other, the first two also with :probabilities or :logits "
    "[default: judged by the values].",
)
@click.option("--ignore-output", "ignore_outputs", multiple=True, metavar="NAME", help="An output that is not judged.")
@click.option(
    "--aim",
    type=click.Choice(["cost", "size"]),
    default="cost",
    show_default=True,
    help="Minimize the cost or the size of the artifact.",
)
@click.option(
    "--max-drop",
    multiple=True,
    metavar="[OUTPUT=]X",
    help="Largest drop of every judged output, in its metric's unit [default: 0.01]; OUTPUT=X for one output.",
)
@click.option(
    "--max-drop-any-class",
    type=Number(),
    metavar="X",
    help="Largest drop in every single class, and in every group of the array 'group' in --data.",
)
@click.option(
    "--confidence", type=Number(), default=0.95, show_default=True, help="Confidence of the bound on the drop."
)
@click.option("--accept-unproven", is_flag=True, help="Accept a point estimate where the drop is not proven.")
@click.option("--max-bytes", type=Whole(), help="Size limit of the artifact, in bytes.")
@click.option("--max-cost", type=Number(), help="Cost limit, in the report's unit.")
@click.option(
    "--prune",
    metavar="auto|dead|none|SHARE",
    default="auto",
    show_default=True,
    help="auto searches which channels can go; dead: only those that are 0 on every calibration sample; none: no "
    "channel; a SHARE such as 0.5 keeps that share of the cost (of the bytes with --aim size).",
)
@click.option(
    "--seed", type=Whole(0, 2**32 - 1), default=0, show_default=True, help="Seed of everything that is drawn at random."
)
@click.option(
    "--finetune",
    metavar="MODULE:FUNCTION",
    help="Your training loop for pruned graphs, called as function(model, samples, labels, seed) with a tf.Module.",
)
@model_options
@click.option(
    "--state",
    metavar="OUTPUT=INPUT",
    multiple=True,
    help="The output is the input of the next call of a stream, as in hn=h.",
)
@click.option(
    "--send-inputs",
    type=click.Choice(["allowed", "decoded", "never"]),
    default="allowed",
    show_default=True,
    help="What devices may send to the cloud tier: everything; decoded tensors, and never an image or a text as it "
    "came in; or nothing. The settings of a device can only be stricter.",
)
@click.option("--recipe", help=f"The only recipe to try: {', '.join(PRESETS)}, or a .toml or .json file.")
@click.option("--runtime", type=click.Choice(["litert", "onnxruntime"]), help="The runtime, where a target runs both.")
@click.option("--targets-file", type=click.Path(path_type=Path), help="Your own target profiles (.toml).")
@click.option("--name", help="Name of the bundles [default: the model's file name].")
@click.option("--version", default="1.0.0", show_default=True, help="Version of the bundles, X.Y.Z.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bundles"),
    show_default=True,
    help="Folder for bundles.",
)
@click.option("--explain", is_flag=True, help="Say why this candidate was chosen, and not a smaller or cheaper one.")
@click.option("--no-cache", is_flag=True, help="Make all candidates anew; do not use earlier runs.")
@dry_run_option
@json_option
def convert(
    model: Path, recipe: str | None, explain: bool, no_cache: bool, dry_run: bool, as_json: bool, **choices: Any
) -> None:
    """Make the best proven bundle of MODEL for each target.

    Every output is judged: the decision output by its metric, every other by how close it is to the float model's
    answers in its own spread. Labels are the array y, and y_OUTPUT for another output.

    MODEL is .keras, .h5, a SavedModel folder, .onnx, .pt2, or a float .tflite. Without --data, parity is measured on
    random inputs, and only float candidates are made. The command exits with 3 where no candidate meets the budget of
    a target; the bundles of the other targets are written.

    Channels that are 0 for every input are removed. Channels that are 0 on all calibration samples (at least 59) are
    removed too, and the possible loss is proven as for int8. Then candidates with fewer channels are tried: the layers
    that are left are fitted anew to the float model on the calibration samples, and the budget judges the result.

    Candidates are kept under ~/.cache/edgekit (at most 1 GiB). Ctrl-C prints the results so far; the same command then
    continues from there. The command does nothing where its bundles exist and their inputs have not changed; with
    --explain it then explains them.

    \b
    Examples:
      edgekit convert model.keras --target raspberry-pi-4 --data data.npz
      edgekit convert model.onnx --target jetson-orin --target server --data data.npz --test test.npz
      edgekit convert model.keras --target raspberry-pi-5 --data data.npz --aim size --max-drop 0.02
      edgekit convert model.keras --target raspberry-pi-4 --data data.npz --explain
      edgekit convert model.keras --target raspberry-pi-4 --data data.npz --prune 0.5 --max-drop 0.03
      edgekit convert model.keras --target x86-64 --dry-run
      edgekit convert model.onnx --target raspberry-pi-4 --data photos/ --preprocess steps.toml
      edgekit convert detector.onnx --target raspberry-pi-4 --data data.npz --cut auto
      edgekit convert detector.onnx --target raspberry-pi-4 --data data.npz --metric boxes=mae --max-drop boxes=0.5
    """
    if explain and as_json:
        raise click.UsageError("--explain prints text, --json prints values; give one of them.")
    with needs_extra("convert"):
        from converters.cache import default_cache
        from converters.graph.stated import parse_state
        from converters.options import ConversionOptions
        from converters.up_to_date import UP_TO_DATE, ConversionRequest

    choices["metric"], choices["metrics"] = _by_output("--metric", choices["metric"], str)
    drop, choices["max_drops"] = _by_output("--max-drop", choices["max_drop"], float)
    choices["max_drop"] = 0.01 if drop is None else drop
    parse_model_options(choices)
    choices["state"] = dict(parse_state(text) for text in choices["state"])
    options = ConversionOptions(recipe=_recipe(recipe) if recipe else None, **choices)
    cache = None if no_cache else default_cache()
    request = ConversionRequest(None if dry_run else cache, model, options)
    reports = request.reports()
    up_to_date = reports is not None
    if reports is None:
        with needs_extra("convert"):
            from converters.plan import make_plan

        plan = make_plan(model, options)
        if dry_run:
            _print_plan(plan, _read(plan), as_json)
            return
        finished: list[Report] = []
        try:
            reports = _run(plan, cache, finished)
        except EdgekitError:  # of one target; the bundles of the others are written
            _print_reports(finished, as_json, explain)
            raise
        request.record(reports)
    _print_reports(reports, as_json, explain, "up to date: " if up_to_date else "wrote ")
    if up_to_date:
        note(UP_TO_DATE)


def _print_reports(reports: list[Report], as_json: bool, explain: bool, verb: str = "wrote ") -> None:
    if as_json and reports:
        print_json(reports)
    elif not as_json:
        for report in reports:
            print_report(report, verb, explained=explain)


def _run(plan: ConversionPlan, cache: Cache | None, finished: list[Report]) -> list[Report]:
    """Run the plan; each report is added to `finished`. Where Ctrl-C ends it, print the candidates so far."""
    with needs_extra("convert"):
        from converters.framework_process import TensorFlowProcess
        from converters.pipeline import run_plan
        from converters.progress import ConversionCallbacks

    measured_by_target: dict[str, dict[str, Measured]] = {profile.name: {} for profile, _ in plan.profiles}
    written: list[Path] = []

    def add(profile: TargetProfile, measured: Measured) -> None:
        measured_by_target[profile.name][measured.recipe.id] = measured

    callbacks = ConversionCallbacks(step=step, found=add, written=written.append, reported=finished.append, note=note)
    with end_on_second_interrupt():
        try:
            with native_output_hidden(), TensorFlowProcess(show_log=is_verbose()) as child:
                return run_plan(plan, callbacks=callbacks, child=child, cache=cache)
        except KeyboardInterrupt:
            _print_interrupted(plan, measured_by_target)
            bundles = ", ".join(map(str, written)) or "no bundle"
            cached = cache is not None and not plan.own_code
            note(f"{bundles} was written" + ("; run the same command again to continue" if cached else ""))
            raise


def _print_interrupted(plan: ConversionPlan, measured_by_target: dict[str, dict[str, Measured]]) -> None:
    """Print the candidates of an interrupted run on stderr."""
    from converters.quality.selection import choose
    from converters.words import title, titles

    note("")
    for target, candidates in measured_by_target.items():
        if not candidates:
            note(f"{target}: no candidate was made yet")
            continue
        try:
            chosen = choose(list(candidates.values()), plan.budget, aim=plan.aim, accept_unproven=plan.accept_unproven)
            best, verdicts = f"the best is {title(candidates[chosen.chosen].recipe)}", chosen.verdicts
        except RefusedError:
            best, verdicts = "none meets the budget", {}
        note(f"{target}: {len(candidates)} candidates so far; {best}; the search was not finished")
        names = titles(one.recipe for one in candidates.values())
        rows = [
            (
                one.bytes,
                f"{one.drop.value:.4f}" if one.drop else "-",
                f"{one.drop.upper:.4f}" if one.drop else "-",
                f"{one.cost.value:.3g}",
                verdicts.get(name, ("failed" if one.fault else "", ""))[0],
                names[name],
            )
            for name, one in candidates.items()
        ]
        print_table(["bytes", "drop", "at most", "cost", "so far", "candidate"], rows, err=True)


def _read(plan: ConversionPlan) -> dict[str, Any]:
    """The model as --dry-run shows it. A model of Keras or PyTorch is not loaded: only its file is looked at."""
    with needs_extra("convert"):
        from converters.framework_process import TensorFlowProcess
        from converters.frontends import ONNX, TFLITE, sniff
        from converters.obstacles import obstacles
        from converters.prepare import load_source

    kind = sniff(plan.model)
    if kind not in (ONNX, TFLITE):
        return {"format": kind}
    with native_output_hidden(), TensorFlowProcess() as child:
        source = load_source(plan, child)
        graph, found = source.graph, obstacles(plan, source, child)
    tensors = {"inputs": graph.logical_inputs, "outputs": graph.logical_outputs}
    shapes = {side: {spec.name: f"{spec.dtype.value} {spec.shape_text}" for spec in of} for side, of in tensors.items()}
    facts = {"format": kind, **shapes, "operators": graph.operators, "notes": list(graph.interface.notes)}
    return {**facts, "obstacles": {target: f"{error}. {error.advice}".strip() for target, error in found.items()}}


def _print_plan(plan: ConversionPlan, source: dict[str, Any], as_json: bool) -> None:
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
        print_json({"model": str(plan.model), **source, "targets": rows})
        _require_no_obstacles(source)
        return
    click.echo(f"would convert {plan.model} ({source['format']}):")
    for side in ("inputs", "outputs"):
        for name, text in source.get(side, {}).items():
            click.echo(f"  {side[:-1]} {name}: {text}")
    if operators := source.get("operators"):
        click.echo(f"  operators: {', '.join(f'{count} {name}' for name, count in operators.items())}")
    print_table(
        ["target", "runtime", "candidates", "bundle"],
        [(row["target"], row["runtime"], ", ".join(row["candidates"]), row["bundle"]) for row in rows],
    )
    for text in source.get("notes", ()):
        note(text)
    _require_no_obstacles(source)


def _require_no_obstacles(source: dict[str, Any]) -> None:
    """Raise ConversionError where a target cannot run the model, after a note on each reason."""
    found = source.get("obstacles") or {}
    for text in dict.fromkeys(found.values()):
        note(f"{', '.join(target for target, one in found.items() if one == text)}: {text}")
    if found:
        raise ConversionError(
            f"the model cannot be converted for {', '.join(found)}, for the reasons above",
            advice="Leave these targets out, or change the model.",
        )


def _by_output(
    option: str, values: Sequence[str], kind: Callable[[str], _Value]
) -> tuple[_Value | None, dict[str, _Value]]:
    """The value without an output's name, None where there is none, and the values by output.

    Raises:
        click.BadParameter: a value is given twice, or is not of this kind.
    """
    found: dict[str, _Value] = {}
    for text in values:
        output, _, value = text.rpartition("=")
        try:
            given = kind(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a number", param_hint=option) from None
        if output in found:
            which = f"for output {output}" if output else "without an output's name"
            raise click.BadParameter(f"two values are given {which}", param_hint=option)
        found[output] = given
    return found.pop("", None), found


def _recipe(text: str) -> Recipe:
    path = Path(text)
    if path.suffix not in (".toml", ".json"):
        return preset(text)
    try:
        data = path.read_bytes()
        decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        return decode(data, type=Recipe)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        fields = ", ".join(Recipe.__struct_fields__)
        raise RecipeError(f"recipe {text} cannot be read: {error}", advice=f"Recipe keys: {fields}.") from error

"""`convert`: what Python programs call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from converters.cache import Cache
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.progress import Step, Watch
from converters.report.report import Report
from converters.up_to_date import THERE, Request


def convert(
    model: str | Path,
    *,
    on_step: Step | None = None,
    on_note: Callable[[str], None] | None = None,
    cache: Cache | None = None,
    **choices: Any,
) -> list[Report]:
    """Make the best proven bundle of `model` for each target; the same as `edgekit convert`.

    With a cache, a call whose bundles are there already, made from the very same, does nothing (see `Request`).

    Args:
        model: .keras, .h5, a SavedModel folder, .onnx, .pt2 or a float .tflite.
        on_step: Called with the name of each step; its context lasts as long as the step. Where the context gives a
            function, that is told how many parts of the step are done, of how many, and the seconds left or None.
        on_note: Called with what a person should know and no report says.
        cache: Where candidates of earlier runs are; None makes all anew.
        choices: As `make_plan`: targets, data, test, metric, aim, max_drop, confidence, accept_unproven, max_bytes,
            max_cost, recipe, runtime, targets_file, name, version, output, preprocess, prune.

    Returns:
        One report a target, in order; `bundle` is the path of the folder that was written.

    Raises:
        ModelFormatError, UnsupportedOpError: the model cannot be read or converted.
        DataError: the samples do not fit.
        ParityError: a step changed the answers.
        RefusedError: no candidate of a target meets the budget. Nothing is written then, for no target.
    """
    watch = Watch()
    if on_step is not None:
        watch = msgspec.structs.replace(watch, step=on_step)
    if on_note is not None:
        watch = msgspec.structs.replace(watch, note=on_note)
    request = Request(cache, model, choices)
    there = request.reports()
    if there is not None:
        watch.note(THERE)
        return there
    reports = run_plan(make_plan(model, **choices), watch=watch, cache=cache)
    request.done(reports)
    return reports

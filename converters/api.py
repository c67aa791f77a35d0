"""`convert`: the Python API of a conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from converters.cache import Cache
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from converters.progress import ConversionCallbacks, StepCallback
from converters.report.report import Report
from converters.up_to_date import UP_TO_DATE, ConversionRequest


def convert(
    model: str | Path,
    *,
    on_step: StepCallback | None = None,
    on_note: Callable[[str], None] | None = None,
    cache: Cache | None = None,
    **choices: Any,
) -> list[Report]:
    """Make the best proven bundle of `model` for each target; the same as `edgekit convert`.

    With a cache, a call does nothing where its bundles exist already and were made from the same inputs (see
    `ConversionRequest`).

    Args:
        model: .keras, .h5, a SavedModel folder, .onnx, .pt2 or a float .tflite.
        on_step: Called with the name of each step. It returns a context that is entered for the duration of the step.
            Where the context gives a function, that function is called with the number of finished parts, the number
            of all parts, and the remaining seconds or None.
        on_note: Called with messages for the user that no report contains.
        cache: Cache with the candidates of earlier conversions; None makes all candidates anew.
        choices: The options of `ConversionOptions`: targets, data, test, metric, aim, max_drop, confidence,
            accept_unproven, max_bytes, max_cost, recipe, runtime, targets_file, name, version, output, preprocess,
            prune, seed, finetune.

    Returns:
        One report per target, in the order of the targets; `bundle` is the path of the folder that was written.

    Raises:
        ModelFormatError, UnsupportedOpError: the model cannot be read or converted.
        DataError: the samples do not fit the model.
        ParityError: a step changed the answers.
        RefusedError: no candidate of a target meets the budget. The bundles of the other targets are written.
    """
    callbacks = ConversionCallbacks()
    if on_step is not None:
        callbacks = msgspec.structs.replace(callbacks, step=on_step)
    if on_note is not None:
        callbacks = msgspec.structs.replace(callbacks, note=on_note)
    options = ConversionOptions(**choices)
    request = ConversionRequest(cache, model, options)
    reports = request.reports()
    if reports is not None:
        callbacks.note(UP_TO_DATE)
        return reports
    reports = run_plan(make_plan(model, options), callbacks=callbacks, cache=cache)
    request.record(reports)
    return reports

"""The model of an .onnx file as the user means it: repaired, without functions of its own, and cut where asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import inliner

from converters.foreign_text import SHOWN
from converters.frontends.onnx.cut import cut_at
from converters.frontends.onnx.floats import precision_of
from converters.frontends.onnx.foreign import one_line
from converters.frontends.onnx.proposal import proposed_cut
from converters.frontends.onnx.read import read_model
from converters.frontends.onnx.repair import repaired
from converters.frontends.onnx.sparse import with_dense_constants
from edgekit.errors import ModelFormatError
from edgekit.preprocess.after import AfterStep

AUTO = "auto"


def source_model(path: Path, cut: Sequence[str] = ()) -> onnx.ModelProto:
    """The model of a file, repaired and cut.

    Args:
        path: The file.
        cut: Names of the tensors that become the outputs; ``auto`` for the proposed ones; empty for no cut.

    Raises:
        ModelFormatError: The file is not ONNX, is truncated, or lacks its external data.
        SettingsError: The model has no such tensors, or there is nothing to propose.
    """
    model = _plain(path)
    if tuple(cut) == (AUTO,):
        return proposed_cut(model, str(path)).model
    return cut_at(model, cut, str(path)) if cut else model


def steps_after_cut(path: Path, cut: Sequence[str]) -> tuple[AfterStep, ...]:
    """The steps after the model that take the place of what ``--cut auto`` removes; empty for other cuts.

    Raises:
        ModelFormatError, SettingsError: As `source_model`.
    """
    if tuple(cut) != (AUTO,):
        return ()
    return proposed_cut(_plain(path), str(path)).steps


def _plain(path: Path) -> onnx.ModelProto:
    """The model of a file, repaired, with dense constants and without functions of its own."""
    read = read_model(path)
    try:
        dense = with_dense_constants(read)
    except (IndexError, ValueError) as error:
        raise ModelFormatError(
            f"{path}: a sparse constant does not fit its shape",
            foreign_text=one_line(error),
            advice="Export the model again with dense weights.",
        ) from error
    return inlined(repaired(dense), str(path))


def onnx_precision(path: Path) -> str:
    """The coarsest float of a file: ``bfloat16``, ``float16``, ``float32`` or ``float64``. Raises as `source_model`."""
    return precision_of(read_model(path))


def inlined(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model with the nodes of its own functions in their place."""
    if not model.functions:
        return model
    try:
        return repaired(inliner.inline_local_functions(model))
    except (RuntimeError, ValueError) as error:
        raise ModelFormatError(
            f"{source}: the functions inside the model cannot be read ({SHOWN})",
            foreign_text=one_line(error),
            advice="Export the model again without functions of its own.",
        ) from error

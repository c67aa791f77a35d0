"""Counts the dead channels of one conversion for its report."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from converters.backends import ConversionContext
from converters.data.samples import Samples
from converters.passes.channels.dead_channels import LEAST_ROWS, layer_channels
from converters.quality.confidence import upper_share
from converters.report.pruning import OtherRows, PrunedLayer, Pruning


def find_dead_channels(
    context: ConversionContext, before: Mapping[str, int], others: list[Samples], confidence: float
) -> Pruning:
    """Count the channels that are proven dead, and those that are dead on the calibration split.

    Args:
        context: The context, whose graph has no channels any more that are proven dead.
        before: Number of channels of each layer before these were removed.
        others: The splits that are not for calibration; empty without data.
        confidence: Confidence of the bounds.
    """
    now = layer_channels(context.graph)
    proven = {name: count - now.get(name, 0) for name, count in before.items()}
    pruning = Pruning(
        "auto",
        channels=sum(before.values()),
        proven=sum(proven.values()),
        confidence=confidence,
        needed=LEAST_ROWS,
    )
    dead = context.dead_channels() if others else None
    if dead is None or not dead.found:
        return msgspec.structs.replace(pruning, rows=dead.rows if dead else 0, layers=_layers(before, proven, {}))
    left = layer_channels(dead.without())
    measured = {name: count - left[name] for name, count in now.items()}
    rows, woke = sum(len(samples) for samples in others), sum(dead.active_rows(samples) for samples in others)
    return msgspec.structs.replace(
        pruning,
        measured=sum(measured.values()),
        rows=dead.rows,
        upper=upper_share(0, dead.rows, confidence),
        others=OtherRows(rows, woke, upper_share(woke, rows, confidence)),
        layers=_layers(before, proven, measured),
    )


def _layers(
    before: Mapping[str, int], proven: Mapping[str, int], measured: Mapping[str, int]
) -> tuple[PrunedLayer, ...]:
    layers = [PrunedLayer(name, count, proven[name], measured.get(name, 0)) for name, count in before.items()]
    return tuple(layer for layer in layers if layer.proven or layer.measured)

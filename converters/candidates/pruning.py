"""Looks for dead channels in one conversion."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from converters.backends import ConversionContext
from converters.data.samples import Samples
from converters.passes.channels.dead_channels import LEAST_ROWS, layer_channels
from converters.quality.confidence import upper_share
from converters.report.pruning import OtherRows, PrunedLayer, Pruning


def pruning_of(
    context: ConversionContext, before: Mapping[str, int], others: list[Samples], confidence: float
) -> Pruning:
    """What there is to take away.

    Args:
        context: With the graph from which what is proven dead has been taken.
        before: How many channels each layer made before that.
        others: Samples that are not for calibration; empty without data.
        confidence: Of the bounds.
    """
    now = layer_channels(context.graph)
    proven = {name: count - now.get(name, 0) for name, count in before.items()}
    found = Pruning(
        "auto",
        channels=sum(before.values()),
        proven=sum(proven.values()),
        confidence=confidence,
        needed=LEAST_ROWS,
    )
    dead = context.dead if others else None
    if dead is None or not dead.found:
        return msgspec.structs.replace(found, rows=dead.rows if dead else 0, layers=_layers(before, proven, {}))
    left = layer_channels(dead.without())
    measured = {name: count - left[name] for name, count in now.items()}
    rows, woke = sum(len(samples) for samples in others), sum(dead.waking_rows(samples) for samples in others)
    return msgspec.structs.replace(
        found,
        measured=sum(measured.values()),
        rows=dead.rows,
        upper=upper_share(0, dead.rows, confidence),
        others=OtherRows(rows, woke, upper_share(woke, rows, confidence)),
        layers=_layers(before, proven, measured),
    )


def _layers(
    before: Mapping[str, int], proven: Mapping[str, int], measured: Mapping[str, int]
) -> tuple[PrunedLayer, ...]:
    found = [PrunedLayer(name, count, proven[name], measured.get(name, 0)) for name, count in before.items()]
    return tuple(layer for layer in found if layer.proven or layer.measured)

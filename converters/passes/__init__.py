"""Passes that rewrite the canonical graph; each keeps the contract in contract.py and is followed by a parity check.

Code that reads a model file, lowers a graph or chooses a candidate does not belong here.
"""

from __future__ import annotations

from converters.passes.bound_masks import BoundMasks
from converters.passes.channels.dead_channels import RemoveDeadChannels
from converters.passes.constant_shapes import ConstantShapes
from converters.passes.contract import GraphPass, PassResult, run_pass
from converters.passes.fold_batch_norm import FoldBatchNorm
from converters.passes.fold_factors import FoldFactors
from converters.passes.loops.restore_recurrent import RestoreRecurrent
from converters.passes.plain_resize import PlainResize
from converters.passes.simplify import Simplify

CANONICAL_PASSES: tuple[GraphPass, ...] = (
    Simplify(),
    PlainResize(),
    BoundMasks(),
    RestoreRecurrent(),
    FoldBatchNorm(),
    FoldFactors(),
    ConstantShapes(),
    RemoveDeadChannels(),
)

__all__ = [
    "CANONICAL_PASSES",
    "BoundMasks",
    "ConstantShapes",
    "FoldBatchNorm",
    "FoldFactors",
    "GraphPass",
    "PassResult",
    "PlainResize",
    "RemoveDeadChannels",
    "RestoreRecurrent",
    "Simplify",
    "run_pass",
]

"""Steps on the canonical graph, one file each, one contract; each is followed by a parity check."""

from __future__ import annotations

from converters.passes.channels.dead_channels import RemoveDeadChannels
from converters.passes.contract import GraphPass, PassResult, run_pass
from converters.passes.fold_batch_norm import FoldBatchNorm
from converters.passes.loops.restore_recurrent import RestoreRecurrent
from converters.passes.simplify import Simplify

CANONICAL_PASSES: tuple[GraphPass, ...] = (Simplify(), RestoreRecurrent(), FoldBatchNorm(), RemoveDeadChannels())

__all__ = [
    "CANONICAL_PASSES",
    "FoldBatchNorm",
    "GraphPass",
    "PassResult",
    "RemoveDeadChannels",
    "RestoreRecurrent",
    "Simplify",
    "run_pass",
]

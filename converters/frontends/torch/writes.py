"""Writes into parts of a tensor (``x[...] = v``), which PyTorch's exporter gives wrongly or by sizes of the data.

Only the PyTorch process (framework_process.py) imports this module.
"""

from __future__ import annotations

from typing import Any

import torch

_ATEN = torch.ops.aten
_WRITES = ("fill_", "copy_", "index_put_", "index_put", "fill", "masked_fill_")


def with_exact_writes(program: Any) -> Any:
    """The program with its writes as operators that the exporter gives exactly; the same program where it has none.

    Args:
        program: A torch.export program. It is not changed.
    """
    names = {str(node.target).partition(".")[2].partition(".")[0] for node in program.graph.nodes}
    if not names & set(_WRITES):
        return program
    return program.run_decompositions({_ATEN.fill.Tensor: _filled, _ATEN.index_put.default: _put})


def _filled(target: Any, value: Any) -> Any:
    """`value` in the shape of `target`. The exporter's own form keeps the shape that one example had."""
    return value.to(target.dtype).expand(target.shape).clone()


def _put(target: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """One value where a mask is true, without the list of places, whose size depends on the data."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or values.numel() != 1 or accumulate:
        return NotImplemented
    rest = target.ndim - mask.ndim
    return torch.where(mask.reshape(*mask.shape, *(1,) * rest), values.to(target.dtype).reshape(()), target)

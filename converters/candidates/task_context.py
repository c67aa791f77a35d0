"""The state that every task of one conversion works with, in this process or in copies in other processes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.backends import ConversionContext
from converters.backends.context import PackedContext
from converters.candidates.evidence import Evidence
from converters.framework_process import TensorFlowProcess
from converters.machine import scratch_folder
from converters.quality.measured import Budget

_copies: dict[str, TaskContext] = {}


class TaskContext:
    """The state that every task of one conversion works with.

    A pickled task context holds arrays, which joblib maps into the processes of one machine instead of copying them. A
    process unpacks the context once and uses it again for the next task.

    Args:
        context: The context of the backends.
        evidence: Samples that judge candidates, with the float model's answers.
        budget: Limits on the drop, the size and the cost.
        copy_of: Token of the task context that this one is a copy of; empty for the original.
    """

    def __init__(self, context: ConversionContext, evidence: Evidence, budget: Budget, copy_of: str = "") -> None:
        self.context = context
        self.evidence = evidence
        self.budget = budget
        self._is_copy = bool(copy_of)
        self._token = copy_of or uuid.uuid4().hex

    @contextlib.contextmanager
    def for_task(self) -> Iterator[ConversionContext]:
        """The context for one task. In a copy, it has a folder and processes of its own, which end with the task."""
        if not self._is_copy:
            yield self.context
            return
        folder = self.context.folder
        parent = folder if folder.is_dir() else None  # the folder does not exist on another machine
        with (
            scratch_folder(prefix="edgekit-candidate-", dir=parent) as scratch,
            TensorFlowProcess() as child,
        ):
            yield self.context.copy_with(child, Path(scratch))

    @property
    def bytes(self) -> int:
        """Memory of graphs and samples, in bytes."""
        sets = (self.evidence.choice, self.evidence.proof)
        evidence = sum(array.nbytes for samples in sets for array in samples.inputs.values())
        return self.context.copied_bytes + evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._token, self.context.packed(), self.evidence, self.budget)


def _restore(token: str, context: PackedContext, evidence: Evidence, budget: Budget) -> TaskContext:
    if token not in _copies:
        _copies.clear()  # they belong to a conversion that has ended
        _copies[token] = TaskContext(ConversionContext.from_packed(context), evidence, budget, token)
    return _copies[token]

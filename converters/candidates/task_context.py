"""What every task of one conversion works with, in this process or in copies of it in others.

Pickled, its graphs and samples are arrays, which joblib maps into the processes of one machine instead of copying them;
a process unpacks them once and knows them again.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from converters.backends import Workbench
from converters.calibration.calibrate import Calibration
from converters.candidates.candidate import Evidence
from converters.data.samples import Samples
from converters.framework_process import TensorFlowChild
from converters.graph.graph import packed, unpacked
from converters.quality.selection import Budget
from edgekit.errors import CalibrationError
from edgekit.tensors import Array

_unpacked: dict[str, Setting] = {}


class Setting:
    """What every task of one conversion works with.

    Args:
        bench: What backends work with.
        evidence: What candidates are asked and judged by.
        budget: What may be lost.
        token: Of the setting that this is a copy of; empty for one that is none.
    """

    def __init__(self, bench: Workbench, evidence: Evidence, budget: Budget, token: str = "") -> None:
        self.bench = bench
        self.evidence = evidence
        self.budget = budget
        self._token = token
        self._packed: Packed | None = None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Workbench]:
        """The workbench; in a copy one of the task's own, whose files and processes go with the task."""
        if not self._token:
            yield self.bench
            return
        near = self.bench.folder if self.bench.folder.is_dir() else None  # not there on another machine
        with (
            tempfile.TemporaryDirectory(prefix="edgekit-candidate-", dir=near) as folder,
            TensorFlowChild() as child,
        ):
            yield self.bench.another(child, Path(folder))

    @property
    def bytes(self) -> int:
        """What graphs and samples take in memory."""
        pack = self._pack()
        sets = (pack.samples, self.evidence.choice, self.evidence.proof)
        arrays = [array for samples in sets if samples for array in samples.inputs.values()]
        return sum(array.nbytes for array in (pack.graph, pack.fixed, *pack.pruned, *arrays))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._pack(),)

    def _pack(self) -> Packed:
        """The same arrays each time, so that joblib knows which it has mapped; others once dead channels were found."""
        bench = self.bench
        if self._packed is None or bool(bench.known_pruned) != bool(self._packed.pruned):
            with contextlib.suppress(CalibrationError):  # then every copy finds the same fault
                bench.calibration  # noqa: B018 - measured here, once
            self._packed = Packed(
                self._token or uuid.uuid4().hex,
                packed(bench.graph),
                packed(bench.fixed),
                bench.given_samples,
                bench.known_calibration,
                tuple(map(packed, bench.known_pruned)) if bench.known_pruned else (),
                self.evidence,
                self.budget,
                str(bench.folder),
            )
        return self._packed


class Packed(msgspec.Struct, frozen=True):
    """A setting on its way to another process; graphs are serialized models (N,) uint8.

    `pruned` are `graph` and `fixed` without dead channels; none where nobody has asked for them.
    """

    token: str
    graph: Array
    fixed: Array
    samples: Samples | None
    calibration: Calibration | None
    pruned: tuple[Array, ...]
    evidence: Evidence
    budget: Budget
    folder: str


def _unpack(found: Packed) -> Setting:
    if found.token not in _unpacked:
        _unpacked.clear()  # of a conversion that is over
        bench = Workbench(
            unpacked(found.graph),
            unpacked(found.fixed),
            found.samples,
            TensorFlowChild(),
            Path(found.folder),
            found.calibration,
            (unpacked(found.pruned[0]), unpacked(found.pruned[1])) if found.pruned else None,
        )
        _unpacked[found.token] = Setting(bench, found.evidence, found.budget, found.token)
    return _unpacked[found.token]

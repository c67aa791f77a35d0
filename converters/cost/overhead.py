"""Facts that differ between two LiteRT files of one model: bytes, calls of the runtime, and loops."""

from __future__ import annotations

import msgspec


class Loop(msgspec.Struct, frozen=True):
    """A loop in an artifact, with a known number of steps.

    Attributes:
        steps: How often the body runs.
        operators: Number of operators in the body.
        macs: Multiply-adds of one step's dense layers.
        values: Elements that the operators of one step write, and changed elements that are passed to the next step.
    """

    steps: int
    operators: int
    macs: int
    values: int


class FileFacts(msgspec.Struct, frozen=True):
    """Facts of one float file.

    Attributes:
        bytes: Size of the stripped file.
        pieces: Number of pieces of the main graph that XNNPACK runs; None where it is not known.
        outside: Number of operators of the main graph that LiteRT's own kernels run; None where it is not known.
        loops: The loops in the file.
    """

    bytes: int
    pieces: int | None
    outside: int | None
    loops: tuple[Loop, ...] = ()


class Overhead(msgspec.Struct, frozen=True):
    """Run-time cost of an artifact that the graph does not show.

    Attributes:
        loops: Loops that replace the graph's recurrent layers.
        outside: Additional calls of delegates and operators, compared with the lowered file.
    """

    loops: tuple[Loop, ...] = ()
    outside: int = 0


NONE = Overhead()

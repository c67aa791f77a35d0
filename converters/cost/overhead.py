"""What tells two LiteRT files of one model apart: bytes, calls that the runtime has to make, and loops."""

from __future__ import annotations

import msgspec


class Loop(msgspec.Struct, frozen=True):
    """A loop in an artifact, of a known number of steps.

    Attributes:
        steps: How often its body runs.
        operators: Number of operators in the body.
        macs: Multiply-adds of one step's dense layers.
        values: Elements that the operators of one step write, and that it hands changed to the next.
    """

    steps: int
    operators: int
    macs: int
    values: int


class FileFacts(msgspec.Struct, frozen=True):
    """What tells two float files of one model apart.

    Attributes:
        bytes: Of the stripped file.
        pieces: Into how many XNNPACK takes the main graph; None where the runtime does not tell.
        outside: Operators of the main graph that XNNPACK leaves to LiteRT's own kernels; None likewise.
        loops: The loops in it.
    """

    bytes: int
    pieces: int | None
    outside: int | None
    loops: tuple[Loop, ...] = ()


class Overhead(msgspec.Struct, frozen=True):
    """What running an artifact takes that the graph does not show.

    Attributes:
        loops: They stand for the graph's recurrent layers.
        outside: How many more calls the runtime has to make, of delegates and of operators, than for the lowered file.
    """

    loops: tuple[Loop, ...] = ()
    outside: int = 0


NONE = Overhead()

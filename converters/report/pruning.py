"""What became of dead channels in one conversion, for reports and the terminal."""

from __future__ import annotations

import msgspec


class PrunedLayer(msgspec.Struct, frozen=True):
    """One layer that makes dead channels: how many of its `channels` are `proven` and `measured` dead."""

    name: str
    channels: int
    proven: int
    measured: int


class OtherRows(msgspec.Struct, frozen=True):
    """Rows that nothing was measured dead by: how many there were, and how many `woke` a channel that was.

    `upper` bounds the share of inputs that wake any.
    """

    rows: int
    woke: int
    upper: float


class Pruning(msgspec.Struct, frozen=True):
    """Dead channels of the source model.

    Attributes:
        asked: ``auto`` or ``none``.
        channels: That the layers of the source model make.
        proven: Of them, those that are 0 for every input or that nobody reads: no candidate has them.
        measured: Of the others, those that are 0 on all `rows`: pruned candidates are without them.
        rows: Calibration samples that were looked at; 0 without any.
        confidence: Of the bounds.
        upper: Bound on the share of inputs that wake one given channel of those measured; None where there are none.
        others: What other samples say of all that were measured; None where there are none.
        needed: How many `rows` it takes to take away what was measured.
        layers: Where they are, in order of execution.
    """

    asked: str
    channels: int = 0
    proven: int = 0
    measured: int = 0
    rows: int = 0
    confidence: float = 0.95
    upper: float | None = None
    others: OtherRows | None = None
    needed: int = 0
    layers: tuple[PrunedLayer, ...] = ()

    @property
    def found(self) -> bool:
        """True where candidates without the measured ones can be made."""
        return self.measured > 0 and self.rows >= self.needed

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        if self.asked == "none":
            return "Dead channels were not looked for."
        parts = []
        if self.proven:
            parts.append(f"{self.proven} of {self.channels} channels are 0 for every input or read by nobody, and gone")
        if self.measured:
            parts.append(f"{self.measured} of {self.channels} channels are 0 on all {self.rows} calibration samples")
        if self.measured and not self.found:
            needed = f"{self.needed} are needed ({5 * self.needed} in --data)"
            parts[-1] += f", which are too few to take them away by: {needed}"
        if self.found and self.upper is not None and self.others is not None:
            others, sure = self.others, f"{self.confidence:.0%}"
            parts[-1] += (
                f", so each wakes on at most {self.upper:.2%} of inputs ({sure}); {others.woke} of {others.rows} other "
                f"samples woke any, so at most {others.upper:.2%} of inputs do ({sure})"
            )
        where = f" on {self.rows} calibration samples" if self.rows else ", and without --data none was measured"
        return ("; ".join(parts) or f"None of {self.channels} channels is dead{where}") + "."

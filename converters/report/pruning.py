"""Dead channels of one conversion, for reports and the terminal."""

from __future__ import annotations

import msgspec


class PrunedLayer(msgspec.Struct, frozen=True):
    """One layer with dead channels: how many of its `channels` are `proven` dead and how many are `measured` dead."""

    name: str
    channels: int
    proven: int
    measured: int


class OtherRows(msgspec.Struct, frozen=True):
    """Result of the samples that are not for calibration.

    Attributes:
        rows: Number of these samples.
        woke: How many of them activate a channel that is 0 on the calibration samples.
        upper: Bound on the share of inputs that activate any such channel.
    """

    rows: int
    woke: int
    upper: float


class Pruning(msgspec.Struct, frozen=True):
    """Dead channels of the source model.

    Attributes:
        asked: ``auto`` or ``none``.
        channels: Number of channels of all layers of the source model.
        proven: Channels that are 0 for every input, or that no operator reads; no candidate has them.
        measured: Other channels that are 0 on all `rows`; pruned candidates do not have them.
        rows: Number of calibration samples that were checked; 0 without data.
        confidence: Confidence of the bounds.
        upper: Bound on the share of inputs that activate one given measured channel; None without measured channels.
        others: Result of other samples for the measured channels; None without measured channels.
        needed: Number of `rows` that is needed to remove measured channels.
        layers: Layers with dead channels, in order of execution.
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
        """True where candidates without the measured channels can be made."""
        return self.measured > 0 and self.rows >= self.needed

    @property
    def sentence(self) -> str:
        """The result as text for people."""
        if self.asked == "none":
            return "Dead channels were not searched for."
        parts = []
        if self.proven:
            parts.append(f"{self.proven} of {self.channels} channels are 0 for every input or unused, and were removed")
        if self.measured:
            parts.append(f"{self.measured} of {self.channels} channels are 0 on all {self.rows} calibration samples")
        if self.measured and not self.found:
            needed = f"{self.needed} are needed ({5 * self.needed} in --data)"
            parts[-1] += f", which are too few samples to remove them: {needed}"
        if self.found and self.upper is not None and self.others is not None:
            others, sure = self.others, f"{self.confidence:.0%}"
            parts[-1] += (
                f", so each is active on at most {self.upper:.2%} of inputs ({sure}); {others.woke} of {others.rows} "
                f"other samples activated any of them, so at most {others.upper:.2%} of inputs do ({sure})"
            )
        basis = f" on {self.rows} calibration samples" if self.rows else "; without --data no channel was measured"
        return ("; ".join(parts) or f"None of {self.channels} channels is dead{basis}") + "."

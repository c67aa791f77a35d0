"""Pruned channels of one conversion, for reports and the terminal: the curve of levels, each layer, and what stays."""

from __future__ import annotations

from collections.abc import Sized

import msgspec


class RecoveryStep(msgspec.Struct, frozen=True):
    """A step of the recovery of a pruned graph, beyond the plain fit.

    Attributes:
        step: ``mixed``, ``shifted`` or ``flipped`` (such copies of the samples in the fit), ``distilled``,
            ``fine-tuned`` or ``own``.
        before, after: Divergence from the float model's answers on held-out calibration rows.
        taken: The step was kept.
        note: Why it could not be tried; empty where it was.
    """

    step: str
    before: float
    after: float
    taken: bool = False
    note: str = ""


class CurvePoint(msgspec.Struct, frozen=True):
    """A pruned float graph.

    Attributes:
        share: The share of the bytes or of the cost that was aimed at.
        left: The share that is left of the float graph.
        parameters: The share of the parameters that is left.
        divergence: From the float model's answers on the calibration split, after the refit; for a recovered graph
            times the gain on held-out rows.
        candidates: Ids of the candidates that were made of it.
        recovery: The steps of its recovery that were tried; empty where the plain fit was enough.
    """

    share: float
    left: float
    parameters: float
    divergence: float
    candidates: tuple[str, ...] = ()
    recovery: tuple[RecoveryStep, ...] = ()


class LayerWidth(msgspec.Struct, frozen=True):
    """Channels of one layer in the source model and in the chosen artifact."""

    name: str
    before: int
    after: int


class ChannelReport(msgspec.Struct, frozen=True):
    """The result of pruning channels that are not dead.

    Attributes:
        asked: ``auto`` or a share.
        curve: The levels that were made, the largest share first.
        layers: Layers of the chosen artifact that lost channels, depthwise ones too; empty where it is not pruned.
        frozen: Why a layer keeps all its channels, by its name.
        taken: The steps of recovery of the chosen artifact.
        note: Why there are no levels; empty where there are.
    """

    asked: str
    curve: tuple[CurvePoint, ...] = ()
    layers: tuple[LayerWidth, ...] = ()
    frozen: dict[str, str] = {}
    note: str = ""
    taken: tuple[str, ...] = ()

    @property
    def recovered(self) -> tuple[CurvePoint, ...]:
        """The levels for which more was tried than the fit."""
        return tuple(point for point in self.curve if point.recovery)

    @property
    def sentence(self) -> str:
        """The result as text for people."""
        held = _counted(self.frozen, "layer keeps", "layers keep") + " all channels for reasons that the report gives."
        if self.note:
            return " ".join([self.note, *([held] if self.frozen else [])])
        if self.layers:
            before, after = (sum(getattr(layer, name) for layer in self.layers) for name in ("before", "after"))
            kept = f"{_counted(self.layers, 'layer keeps', 'layers keep')} {after} of {before} channels"
            text = f"{kept}, and later layers were fitted anew{self._trained}."
        else:
            text = "The chosen artifact keeps all channels that are not dead."
        tried = _counted(self.curve, "level of pruning was made.", "levels of pruning were made.")
        return " ".join([text, *([tried] if self.curve else []), *([held] if self.frozen else [])])

    @property
    def _trained(self) -> str:
        """The training of the chosen artifact beside the fit, in words; empty if there was none."""
        words = {
            "distilled": "distilled from the float model",
            "fine-tuned": "fine-tuned on labels",
            "own": "trained by your loop",
        }
        steps = [words[step] for step in self.taken if step in words]
        return f" and {', '.join(steps)}" if steps else ""


def _counted(many: Sized, one: str, several: str) -> str:
    return f"{len(many)} {one if len(many) == 1 else several}"

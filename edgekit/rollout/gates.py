"""Gates: what a rollout compares between the previous model and the new one, as values and as people write them.

Pure rules. `gate_pairs` makes pairs of answers of both, and `gate_evidence` weighs them.
"""

from __future__ import annotations

import re

import msgspec

from edgekit.bounds import number_fault
from edgekit.errors import SettingsError
from edgekit.mqtt.messages import LATENCY_BOUNDS_MS, Behaviour

OUTCOME, ERRORS, FALLBACK, LATENCY, AGREEMENT = "outcome", "errors", "fallback", "latency", "agreement"
METRICS = (OUTCOME, ERRORS, FALLBACK, LATENCY, AGREEMENT)
DEFAULT_AGREEMENT = 0.95
MAX_GATES = 8
_WORDS = {OUTCOME: "drop", ERRORS: "rise", FALLBACK: "rise", LATENCY: "rise"}
_SHOWN = {
    OUTCOME: "good outcomes",
    ERRORS: "failed requests",
    FALLBACK: "answers that did not come from the local model alone",
    AGREEMENT: "answers agree with the previous model's",
}
_GATE = re.compile(r"(?P<metric>[a-z]+)(\s+(?P<ms>\d+)\s*ms)?(\s+(?P<word>drop|rise)\s*<=\s*(?P<margin>\S+))?")
_AGREEMENT = re.compile(r"agreement(\s*(:|>=)\s*(?P<share>\S+))?")
_ADVICE = "Write for example --gate outcome, --gate 'outcome drop <= 0.02' or --gate 'latency 50ms rise <= 0.05'."


class Gate(msgspec.Struct, frozen=True):
    """One comparison of the new model with the previous one of the same device.

    Attributes:
        metric: ``outcome`` (the application's own signal), ``errors``, ``fallback``, ``latency``, or ``agreement``
            (of both models' answers to the same inputs, before the new one is activated).
        limit_ms: For ``latency``: answers that took longer are slow; one of LATENCY_BOUNDS_MS.
        margin: The share may get worse by this much, 0 to less than 1. For ``agreement``: this share of the answers
            may differ.
    """

    metric: str
    limit_ms: int = 0
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise SettingsError(f"a gate compares {', '.join(METRICS)}, not {self.metric!r}", advice=_ADVICE)
        if (fault := number_fault("the margin of a gate", self.margin, 0, 1)) or self.margin == 1:
            raise SettingsError(fault or "the margin of a gate is 1, expected less", advice=_ADVICE)
        if self.metric == LATENCY and self.limit_ms not in LATENCY_BOUNDS_MS:
            known = ", ".join(str(bound) for bound in LATENCY_BOUNDS_MS)
            given = f"of {self.limit_ms} ms" if self.limit_ms else "without a limit"
            raise SettingsError(
                f"a latency gate {given} is not possible; devices count answers slower than {known} ms", advice=_ADVICE
            )
        if self.metric != LATENCY and self.limit_ms:
            raise SettingsError(f"only a latency gate has milliseconds, not {self.metric}", advice=_ADVICE)

    @property
    def text(self) -> str:
        """As people write it, for example ``outcome drop <= 0.02`` or ``agreement >= 0.95``."""
        if self.metric == AGREEMENT:
            return f"{AGREEMENT} >= {round(1 - self.margin, 9):g}"
        name = f"{self.metric} {self.limit_ms}ms" if self.limit_ms else self.metric
        return f"{name} {_WORDS[self.metric]} <= {self.margin:g}"

    @property
    def shown(self) -> str:
        """The share that it compares, for people."""
        return _SHOWN.get(self.metric, f"answers that took longer than {self.limit_ms} ms")

    @property
    def falls(self) -> bool:
        """True if the share that is shown gets worse when it falls."""
        return self.metric in (OUTCOME, AGREEMENT)

    def good_of(self, behaviour: Behaviour) -> tuple[int, int]:
        """How many of a device's observations are good, and their number; none for ``agreement``."""
        if self.metric == AGREEMENT:
            return 0, 0
        if self.metric == OUTCOME:
            good, total = behaviour.good, behaviour.outcomes
        elif self.metric == ERRORS:
            good, total = behaviour.requests - behaviour.errors, behaviour.requests
        else:
            total = behaviour.requests - behaviour.errors
            at = LATENCY_BOUNDS_MS.index(self.limit_ms) if self.limit_ms else 0
            late = behaviour.slower[at] if at < len(behaviour.slower) else 0
            good = behaviour.local if self.metric == FALLBACK else total - late
        total = max(0, total)  # a device may report anything
        return min(max(0, good), total), total


def parse_gate(text: str) -> Gate:
    """A gate as people write it; without a margin, nothing may get worse.

    Raises:
        SettingsError: the text is no gate.
    """
    if agreement := _AGREEMENT.fullmatch(text.strip()):
        return _agreement(agreement["share"], text)
    match = _GATE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is no gate", advice=_ADVICE)
    metric, word = match["metric"], match["word"]
    try:
        margin = float(match["margin"] or 0)
    except ValueError:
        raise SettingsError(f"{match['margin']!r} is no share in the gate {text!r}", advice=_ADVICE) from None
    gate = Gate(metric, int((match["ms"] or "0")[:9]), margin)
    if word and word != _WORDS[metric]:
        raise SettingsError(
            f"the share of gate {text!r} gets worse when it {_WORDS[metric]}s: write {gate.text!r}", advice=_ADVICE
        )
    return gate


def _agreement(share: str | None, text: str) -> Gate:
    try:
        least = DEFAULT_AGREEMENT if share is None else float(share)
    except ValueError:
        raise SettingsError(f"{share!r} is no share in the gate {text!r}", advice=_ADVICE) from None
    if (fault := number_fault("the share of an agreement gate", least, 0, 1)) or least == 0:
        raise SettingsError(fault or "the share of an agreement gate is 0, expected more", advice=_ADVICE)
    return Gate(AGREEMENT, margin=round(1 - least, 9))

"""The samples that judge the candidates of one conversion, with the float model's answers."""

from __future__ import annotations

import msgspec

from converters.data.samples import Samples
from converters.graph.graph import CHUNK_ROWS
from converters.quality.drop import Judgement
from converters.quality.judging import JudgedOutput, Split, Stratum, judge
from converters.quality.metrics import Metric
from edgekit.tensors import Array


class Evidence(msgspec.Struct, frozen=True):
    """Samples with the canonical float model's answers, and the rules that judge other answers.

    Attributes:
        choice, proof: The choice and proof splits; without data both are the same random inputs. The labels of each
            output are under its name (`Samples.with_labels_of`).
        choice_answers, proof_answers: The float model's answers (N, ...) by output.
        judged: The judged outputs with their metrics, the decision output first; empty without data.
        output: Name of the decision output.
        decision: The same where it holds class scores; else empty.
        ignored: Names of outputs that the user excluded.
        strata: Classes and groups of the proof split; empty without data.
        noise: Noise of the float model by output (see `converters.quality.noise`).
        rows: How many rows to run at once.
    """

    choice: Samples
    proof: Samples
    choice_answers: dict[str, Array]
    proof_answers: dict[str, Array]
    judged: tuple[JudgedOutput, ...]
    output: str
    decision: str
    ignored: tuple[str, ...] = ()
    strata: tuple[Stratum, ...] = ()
    noise: dict[str, Array] = {}
    rows: int = CHUNK_ROWS

    @property
    def metric(self) -> Metric | None:
        """The metric of the decision output; None without data."""
        return self.judged[0].metric if self.judged else None

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Names of the outputs that count: all but the ignored ones."""
        return tuple(name for name in self.choice_answers if name not in self.ignored)

    def judgement(self, choice: dict[str, Array], proof: dict[str, Array], confidence: float) -> Judgement:
        """Judge a candidate's answers to both splits. Raises as `judge`."""
        one, other = (
            Split(reference, answers, {out.name: samples.labels_of(out.name) for out in self.judged}, samples.stream)
            for samples, reference, answers in (
                (self.choice, self.choice_answers, choice),
                (self.proof, self.proof_answers, proof),
            )
        )
        return judge(self.judged, one, other, self.strata, confidence)

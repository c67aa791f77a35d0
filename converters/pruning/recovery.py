"""Recovery of pruned graphs beyond the plain refit: more inputs for it, distillation, labels, and the user's own loop.

Every fifth row of the calibration split is held out. A step is judged on a graph that was fitted and trained without
these rows: it is taken where it makes the divergence from the original on them less. Training is judged on copies of
held-out images too, because twenty rows alone often judge wrongly. A step that is taken is then made with all rows.
Only the user's loop runs once, and its result has not seen the held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from converters.data.samples import Samples
from converters.framework_process import FrameworkProcess
from converters.graph.graph import Graph
from converters.passes.channels.groups import without
from converters.passes.stepping import chunks_of
from converters.passes.weights import with_constants
from converters.pruning.augmentation import kinds_for, taught_inputs, with_copies
from converters.pruning.families import removed_by_names
from converters.pruning.kept import numbers_by_layer
from converters.pruning.pruner import ChannelPruner
from converters.pruning.refit import FOLDS, refit
from converters.pruning.teaching import taught
from converters.quality.divergence import are_logits, divergence
from converters.report.channels import RecoveryStep
from converters.training.schedule import Lesson, Schedule
from edgekit.bundle.recipe import DISTILLED, FINE_TUNED, FLIPPED, MIXED, OWN, SHIFTED
from edgekit.errors import ConversionError, EdgekitError
from edgekit.tensors import Array

HELD_OUT = 5  # one row in so many judges
LEAST_ROWS = 40  # with fewer, the held-out rows say nothing
LEAST_HELD_OUT = 32  # rows that can choose copies; 16 chose a kind that was no better on others
COPIES, MOST_ROWS = 3, 1024  # copies of each row, and rows with copies
TOO_LONG = "training was left out, because it would take too long beside the rest of the search"
NOT_FINITE = "its answers are not finite"
CLEARLY = 0.95  # copies have to lower the divergence to this share, on both halves of the held-out rows
LOST = 0.01  # divergence below which there is little to recover
STEPS, LEAST_STEPS, ROWS, RATE = 100, 25, 32, 1e-2
TRAINING_MACS = 6e10  # of one training; a step takes about three runs of each of its rows

Kept = tuple[tuple[str, str], ...]


class Recovered(msgspec.Struct, frozen=True):
    """A recovered graph.

    Attributes:
        graph: The graph; None where no step helped.
        judged: The same steps without the held-out rows; None where no training was tried.
        recovery: The steps that were taken, as in a recipe.
        steps: All steps that were tried.
    """

    graph: Graph | None
    recovery: tuple[str, ...]
    steps: tuple[RecoveryStep, ...]
    judged: Graph | None = None

    @property
    def gain(self) -> float:
        """The divergence after all steps as a share of that before, on held-out rows."""
        return math.prod(step.after / max(step.before, 1e-12) for step in self.steps if step.taken)


class Chosen(msgspec.Struct, frozen=True):
    """A choice of one recovery that those of other graphs follow: the kind of copies, and whether labels are tried."""

    copies: str = ""
    labels: bool = True


class Recovery:
    """Recovers graphs that `pruner` pruned.

    Args:
        pruner: The pruner, with its samples: the calibration split.
        process: TensorFlow's process; None where no training is wanted.
        labels: Class indices (N,) of the samples; None without labels.
        own: The user's training loop, ``module:function``; empty without one.
    """

    def __init__(
        self, pruner: ChannelPruner, process: FrameworkProcess | None, labels: Array | None = None, own: str = ""
    ) -> None:
        self._pruner, self._process, self._own = pruner, process, own
        self._labels = labels
        rows = np.arange(len(pruner.samples))
        self._rows, self._train_rows = rows, rows[rows % HELD_OUT != HELD_OUT - 1]
        self._held = pruner.samples.take(rows[rows % HELD_OUT == HELD_OUT - 1])
        self._train = pruner.samples.take(self._train_rows)
        self._copies: str | None = None
        self._expected: dict[str, Array] = {}
        self._judges: tuple[dict[str, Array], dict[str, Array]] | None = None

    @property
    def possible(self) -> bool:
        """True where the held-out rows are enough to judge by."""
        return len(self._pruner.samples) >= LEAST_ROWS

    def recover(self, kept: Kept, plain: Graph, chosen: Chosen | None = None) -> Recovered:
        """Try every step but the user's loop on the graph whose layers keep `kept`.

        Args:
            kept: The kept channels of each layer, by its name.
            plain: This graph after the plain fit on all rows.
            chosen: What an earlier recovery showed; None tries all kinds of copies, and labels.

        Raises:
            ConversionError: The layers or channels do not fit the graph.
        """
        copies, tried = self._choose_copies(kept) if chosen is None else (chosen.copies, [])
        graph = self._fitted(kept, self._pruner.samples, copies) if copies else plain
        if self._process is None:
            return Recovered(graph if copies else None, (copies,) if copies else (), tuple(tried))
        lessons = (
            [DISTILLED, FINE_TUNED] if self._labels is not None and (chosen is None or chosen.labels) else [DISTILLED]
        )
        trained = self._train_in_order(kept, copies, graph, lessons)
        taken = (*([copies] if copies else []), *trained.recovery)
        made = trained.graph or (graph if copies else None)
        return Recovered(made, taken, (*tried, *trained.steps), trained.judged)

    def own(self, kept: Kept, before: Recovered) -> Recovered:
        """Run the user's loop on a recovered graph, or on the fitted one where no step helped.

        Raises:
            ConversionError: The user's function raised an error, its process ended, or answers are not finite.
        """
        graph = before.judged or self._fitted(kept, self._train, copies_in(before.recovery))
        lost = self._lost(graph)
        made = self._looped(graph)
        after = self._lost(made)
        if not math.isfinite(after):
            raise ConversionError(f"the training loop {self._own} left a graph whose answers are not finite")
        step = RecoveryStep(OWN, lost, after, taken=after < lost)
        taken = (*before.recovery, OWN) if step.taken else before.recovery
        return Recovered(made if step.taken else None, taken, (*before.steps, step))

    def remake(self, kept: Kept, recovery: Sequence[str]) -> Graph:
        """The graph of a recipe: exactly the steps `recovery` are taken.

        Raises:
            ConversionError: The layers do not fit the graph, or a step cannot be taken.
        """
        copies, rows = copies_in(recovery), self._train_rows if OWN in recovery else self._rows
        if copies or OWN in recovery:
            graph = self._fitted(kept, self._pruner.samples.take(rows), copies)
        else:
            graph = self._pruner.pruned(kept).graph
        for name in [step for step in recovery if step != copies]:
            graph = self._looped(graph) if name == OWN else self._trained(kept, copies, name, graph, rows)
        return graph

    def _choose_copies(self, kept: Kept) -> tuple[str, list[RecoveryStep]]:
        """The kind of copies that clearly helps the refit on both halves of the held-out rows; empty for none."""
        if len(self._held) < LEAST_HELD_OUT:
            return "", []
        halves = self._lost_by_half(self._fitted(kept, self._train, ""))
        best, tried = "", []
        least = math.inf
        for kind in kinds_for(self._train.inputs):
            found = self._lost_by_half(self._fitted(kept, self._train, kind))
            lost = sum(found) / 2
            tried.append(RecoveryStep(kind, sum(halves) / 2, lost))
            if lost < least and all(new <= CLEARLY * old for new, old in zip(found, halves, strict=True)):
                best, least = kind, lost
        return best, [msgspec.structs.replace(step, taken=step.step == best) for step in tried]

    def _train_in_order(self, kept: Kept, copies: str, graph: Graph, lessons: Sequence[str]) -> Recovered:
        """Distill `graph`, and then train it on labels where that is among the `lessons` and the distillation helped.

        The answers of the original judge, so labels alone pull away from them, and a training takes long. An error
        undoes the step, because recovery only adds candidates.
        """
        if not training_steps(graph):
            lost = self._lost(graph)
            return Recovered(None, (), (RecoveryStep(DISTILLED, lost, lost, note=TOO_LONG),))
        tried, taken, judged = [], [], self._fitted(kept, self._train, copies)
        before = self._lost(judged)
        for name in lessons:
            try:
                made = self._trained(kept, copies, name, judged, self._train_rows)
                after = self._lost(made)
                better = self._trained(kept, copies, name, graph, self._rows) if after < before else None
                fault = "" if math.isfinite(after) else NOT_FINITE
                if better is not None and not math.isfinite(self._lost(better)):
                    better, fault = None, NOT_FINITE
            except EdgekitError as error:
                better, after, fault = None, before, str(error)
            tried.append(RecoveryStep(name, before, before if fault else after, taken=better is not None, note=fault))
            if better is None:
                break
            graph, judged, before = better, made, after
            taken.append(name)
        return Recovered(graph if taken else None, tuple(taken), tuple(tried), judged)

    def _trained(self, kept: Kept, copies: str, name: str, graph: Graph, rows: Array) -> Graph:
        """`graph` after one training on the calibration rows `rows`."""
        steps = training_steps(graph)
        if self._process is None or not steps:
            raise ConversionError(TOO_LONG)
        samples = self._pruner.samples.take(rows)
        inputs, labels = taught_inputs(self._with_copies(samples, copies).inputs, self._pruner.seed), None
        if name == FINE_TUNED:
            if self._labels is None:
                raise ConversionError(
                    "the recipe was made by fine-tuning on labels, and the data have none for its scores",
                    advice="Give data with class indices y, or remove 'fine-tuned' from the recipe's recovery.",
                )
            inputs, labels, steps = samples.inputs, self._labels[rows], steps // 2
        answers, layers = taught(self._pruner.channels, self._removed(kept), graph, inputs)
        decision = self._pruner.judged[0]
        logits = bool(decision) and are_logits(answers[decision])
        lesson = Lesson(dict(inputs), answers, layers, decision, logits, labels)
        schedule = Schedule(steps, ROWS, RATE, self._pruner.seed)
        new = self._process.call("distill", model=graph.to_bytes(), lesson=lesson, schedule=schedule)
        return _changed(graph, new)

    def _looped(self, graph: Graph) -> Graph:
        if self._process is None or not self._own:
            raise ConversionError(
                "the recipe was made with a training loop of the user, and none is given",
                advice="Give --finetune module:function, or remove 'own' from the recipe's recovery.",
            )
        labels = self._pruner.samples.labels
        new = self._process.call(
            "run_loop",
            model=graph.to_bytes(),
            name=self._own,
            inputs=self._train.inputs,
            labels=None if labels is None else labels[self._train_rows],
            seed=self._pruner.seed,
        )
        return _changed(graph, new)

    def _fitted(self, kept: Kept, samples: Samples, copies: str) -> Graph:
        """The graph whose layers are fitted on `samples` and copies of them."""
        pruner, removed = self._pruner, self._removed(kept)
        chunks = chunks_of(pruner.graph, self._with_copies(samples, copies), least=2 * FOLDS)
        with threadpool_limits(1):
            return refit(pruner.channels, removed, without(pruner.channels, removed), chunks, pruner.seed).graph

    def _with_copies(self, samples: Samples, copies: str) -> Samples:
        count = min(COPIES, MOST_ROWS // len(samples) - 1) if copies else 0
        if count < 1:
            return samples
        return Samples(with_copies(samples.inputs, copies, count, self._pruner.seed))

    def _removed(self, kept: Kept) -> Array:
        return removed_by_names(self._pruner.channels, numbers_by_layer(kept))

    def _lost(self, graph: Graph) -> float:
        """The divergence of `graph` from the original on the held-out rows and on copies of images."""
        if self._judges is None:
            inputs = taught_inputs(self._held.inputs, self._pruner.seed)
            self._judges = inputs, self._pruner.graph.run(inputs)
        return self._apart(graph, *self._judges)

    def _lost_by_half(self, graph: Graph) -> tuple[float, float]:
        self._expected = self._expected or self._pruner.graph.run(self._held.inputs)
        middle = len(self._held) // 2
        first, second = (
            self._apart(
                graph, self._held.take(rows).inputs, {name: value[rows] for name, value in self._expected.items()}
            )
            for rows in (slice(0, middle), slice(middle, None))
        )
        return first, second

    def _apart(self, graph: Graph, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
        """The divergence of `graph` from `expected` answers (N, ...); infinite where answers are not finite."""
        answers = graph.run(inputs)
        if not all(np.isfinite(value).all() for value in answers.values() if value.dtype.kind == "f"):
            return math.inf
        return divergence(expected, answers, *self._pruner.judged)


def copies_in(recovery: Sequence[str]) -> str:
    """The kind of copies among the steps of a recovery; empty for none."""
    return next((step for step in recovery if step in (MIXED, SHIFTED, FLIPPED)), "")


def chosen_by(recovery: Sequence[str], tried: Sequence[RecoveryStep]) -> Chosen:
    """The choice that follows from a recovery with the steps `recovery`, of those `tried`."""
    return Chosen(copies_in(recovery), all(step.taken for step in tried if step.step == FINE_TUNED))


def labels_for(samples: Samples, decision: str) -> Array | None:
    """Class indices (N,) for fine-tuning; None where the model has no class scores, or the labels are no indices."""
    labels = samples.labels
    known = bool(decision) and labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    return labels if known else None


def training_steps(graph: Graph) -> int:
    """The number of steps of one training of `graph`; 0 where too few are affordable."""
    macs = sum(graph.macs.values()) or 1
    steps = min(STEPS, int(TRAINING_MACS / (3 * macs * ROWS)))
    return steps if steps >= LEAST_STEPS else 0


def _changed(graph: Graph, values: dict[str, Array]) -> Graph:
    faults = [name for name, value in values.items() if not np.isfinite(value).all()]
    if faults:
        raise ConversionError(f"training left weights that are not finite: {', '.join(faults[:3])}")
    return with_constants(graph, values)

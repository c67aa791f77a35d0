"""Certifies an edge bundle together with a cloud model, from answers of both to the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from converters.cascade.certifying import (
    Curve,
    Goal,
    Pairs,
    certify,
    curve,
    disagreement_bound,
    naive_threshold,
    samples_needed,
    share_bound,
)
from converters.cascade.scores import area, below_ties, fit_temperature, functions, tied
from converters.data.repeats import copied, different_samples, repeated
from converters.data.samples import CALIBRATION_SHARE, CHOICE_SHARE, Samples, row_digests, split_samples
from edgekit.bundle.manifest import Task
from edgekit.bundle.scores import probability_faults
from edgekit.certificate.document import ACCURACY, KEPT_ACCURACY, REGRET, Bound, Bounded, Certificate
from edgekit.certificate.scoring import ScoreFunction, score
from edgekit.errors import DataError, RefusedError
from edgekit.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

TARGET_SHARE, RATE_SHARE = 0.8, 0.1  # of the error probability: for the target, and for each of the two rates
PROOF_SHARE = 1 - CALIBRATION_SHARE - CHOICE_SHARE  # of the samples
_BEST_STEPS = 10


class Promise(msgspec.Struct, frozen=True):
    """The claim to prove: one of the targets of certificates, its value, and the confidence."""

    target: str
    value: float
    confidence: float

    @property
    def limit(self) -> float:
        """The allowed mean loss."""
        return self.value if self.target == REGRET else 1 - self.value

    def shown(self, loss: float) -> float:
        """A mean loss in the unit of `value`."""
        return loss if self.target == REGRET else 1 - loss

    def goal(self) -> Goal:
        """The promise as a goal of `certifying`."""
        return Goal(self.target, self.limit, TARGET_SHARE * (1 - self.confidence))


class Tried(msgspec.Struct, frozen=True):
    """A score function and the mean loss over all shares sent, on the samples of the choice."""

    function: ScoreFunction
    area: float


class Calibration(msgspec.Struct, frozen=True):
    """A certificate and what the report shows beside it.

    Attributes:
        certificate: The certificate.
        tried: The score functions, the chosen one first.
        proof: Measured losses on the samples of the proof.
        repeated: Samples whose inputs equal those of another one by chance.
        copies: Samples that were left out, as copies of another one.
        naive: Threshold that meets the target on these samples and proves nothing; None where there is none.
        loss: Measured loss at the certified threshold.
        limit: Allowed loss.
    """

    certificate: Certificate
    tried: tuple[Tried, ...]
    proof: Curve
    naive: float | None
    loss: float
    limit: float
    repeated: int = 0
    copies: int = 0


class Answers(msgspec.Struct, frozen=True):
    """Answers of both models: the edge's decision output (N, classes), the cloud's classes (N,), and labels if any."""

    edge: Array
    cloud: Array
    labels: Array | None

    def pairs(self, function: ScoreFunction) -> Pairs:
        """The answers as pairs, scored by `function`."""
        decided = self.edge.argmax(axis=-1)
        scores, differs = tied(score(function, self.edge)), decided != self.cloud
        if self.labels is None:
            return Pairs(scores, differs)
        return Pairs(scores, differs, decided != self.labels, self.cloud != self.labels)


def answers(edge: Run, cloud: Run, samples: Samples, task: Task) -> Answers:
    """Run both models on the samples.

    Raises:
        DataError: an answer is not one row of scores a sample, the models have different classes, or a device would
            refuse the cloud model's answers.
    """
    asked = (("edge", edge, samples.inputs), ("cloud", cloud, samples.originals or samples.inputs))
    outputs = {where: run(inputs).get(task.output) for where, run, inputs in asked}
    for where, found in outputs.items():
        if found is None or found.ndim != 2 or len(found) != len(samples) or found.shape[1] < 2:
            shape = "none" if found is None else str(list(found.shape))
            raise DataError(
                f"the {where} model's output {task.output!r} is {shape}, expected [{len(samples)}, classes]",
                advice="Certificates are for classifiers with one row of scores for each sample.",
            )
    first, second = outputs["edge"], outputs["cloud"]
    assert first is not None
    assert second is not None
    if first.shape != second.shape:
        raise DataError(f"the edge model has {first.shape[1]} classes, and the cloud model {second.shape[1]}")
    _check_form(task, first, second)
    unusable = {where: ~np.isfinite(found).all(axis=-1) for where, found in (("edge", first), ("cloud", second))}
    faults = [f"{int(rows.sum())} of the {where} model" for where, rows in unusable.items() if rows.any()]
    if faults:
        raise DataError(
            f"answers hold NaN or infinity: {' and '.join(faults)}, of {len(samples)} samples",
            advice="Mend the model; without the samples on which it fails, a proof would not be of all answers.",
        )
    return Answers(first, second.argmax(axis=-1), samples.labels)


def _check_form(task: Task, edge: Array, cloud: Array) -> None:
    """Refuse a cloud model whose scores no device would take, so that a certificate of it would never hold."""
    faults = probability_faults(task, cloud[np.isfinite(cloud).all(axis=-1)], edge)
    if edge.dtype != cloud.dtype:
        faults.append(f"{task.output} is {cloud.dtype}, and {edge.dtype} on the device")
    if faults:
        raise DataError(
            f"devices would refuse the cloud model's answers: {'; '.join(faults)}",
            advice="Give the cloud model the form of the edge model's scores, for example a softmax at its end.",
        )


def calibrate(
    promise: Promise, task: Task, edge: Run, cloud: Run, samples: Samples, unlabelled: Samples | None, bound: Bound
) -> Calibration:
    """Fit the scores on one part of the samples, choose on another, and certify a threshold on the rest.

    Args:
        promise: What is to be proven.
        task: Task of the edge bundle.
        edge, cloud: Run the models on samples (N, ...); the cloud model on their original bytes, where they are kept.
        samples: Held-out samples; with labels unless the target is ``regret``.
        unlabelled: More samples, whose labels are not used; None for none.
        bound: What the certificate is bound to.

    Raises:
        DataError: the samples or answers do not fit.
        RefusedError: the target is not proven; the message has the reason, the best to be had, and how many samples
            would do.
    """
    if promise.target != REGRET and samples.labels is None:
        raise DataError(
            f"the target {promise.target} needs labels, and the data has none",
            advice="Add class indices as y, or use --regret, which needs none.",
        )
    given, samples = len(samples), different_samples(samples)
    digests = row_digests(samples)
    if unlabelled is not None:
        _check_apart(digests, row_digests(unlabelled))
    _check_label_form(samples.labels)
    split = split_samples(samples)
    parts = (split.calibration, split.choice, split.proof)
    fitting, choice, proof = (answers(edge, cloud, part, task) for part in parts)
    _check_label_range(samples.labels, fitting.edge.shape[1])
    more = None if unlabelled is None else answers(edge, cloud, unlabelled, task)
    tried = _tried(promise, task, fitting, choice)
    function = tried[0].function
    chosen, proving = choice.pairs(function), proof.pairs(function)
    extra = None if more is None else more.pairs(function).without_labels()
    goal = promise.goal()
    threshold = certify(goal, chosen, proving, extra)
    if threshold is None or not np.isfinite(threshold):
        raise _refusal(promise, chosen, proving, extra, everything=threshold is not None)
    threshold = below_ties(threshold)
    certificate = _certificate(promise, function, threshold, chosen, proving, extra, task.output, bound)
    found = curve(proving, goal.target)
    loss = float(found.loss[np.searchsorted(found.threshold, threshold)])
    naive = naive_threshold(proving, goal)
    return Calibration(certificate, tried, found, naive, loss, goal.limit, repeated(digests), given - len(samples))


def _check_apart(digests: Sequence[bytes], more: Sequence[bytes]) -> None:
    """Refuse samples without labels that are those of the proof once more, or those of the choice."""
    count = copied(digests, more)
    if count:
        raise DataError(
            f"{count} of the {len(more)} samples of --unlabeled are in --data too; each sample may be used once",
            advice="Give other samples as --unlabeled, or leave it out.",
        )


def _check_label_form(labels: Array | None) -> None:
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}, expected class indices (N,)",
            advice="Save y.argmax(axis=1) where y has one column for each class, y.astype(int) where it is one number.",
        )


def _check_label_range(labels: Array | None, classes: int) -> None:
    """A label out of range would count as a wrong answer of both models."""
    if labels is None:
        return
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"labels go from {labels.min()} to {labels.max()}, and the models have {classes} classes: "
            f"{int(outside.sum())} of {len(labels)} are out of range",
            advice="Leave samples without a known class out of --data; --unlabeled takes them.",
        )


def _tried(promise: Promise, task: Task, fitting: Answers, choice: Answers) -> tuple[Tried, ...]:
    classes = fitting.cloud if fitting.labels is None else fitting.labels
    temperature = fit_temperature(fitting.edge, task.scores, classes)
    plain = fitting.pairs(ScoreFunction(scores=task.scores))
    made = functions(fitting.edge, task.scores, temperature, plain)
    found = [Tried(one, area(choice.pairs(one), promise.target)) for one in made]
    return tuple(sorted(found, key=lambda one: one.area))


def _certificate(
    promise: Promise,
    function: ScoreFunction,
    threshold: float,
    chosen: Pairs,
    proving: Pairs,
    extra: Pairs | None,
    output: str,
    bound: Bound,
) -> Certificate:
    plain = proving.without_labels()
    everything = plain if extra is None else plain.joined(extra)
    error = RATE_SHARE * (1 - promise.confidence)
    share = share_bound(everything, threshold, error)
    kept = everything.score >= threshold
    certificate = Certificate(
        target=promise.target,
        value=promise.value,
        error=TARGET_SHARE * (1 - promise.confidence),
        confidence=promise.confidence,
        score=function,
        threshold=threshold,
        output=output,
        sent=Bounded(float(1 - kept.mean()), share, error),
        disagreement=Bounded(
            float(everything.differs[kept].mean()) if kept.any() else 0.0,
            disagreement_bound(everything, chosen, threshold, share, error),
            error,
        ),
        bound=bound,
        samples=len(proving),
        unlabelled=0 if extra is None else len(extra),
        format=bound.certificate_format,
    )
    if proving.edge_wrong is None or proving.cloud_wrong is None:
        return certificate
    accuracies = (float(1 - wrong.mean()) for wrong in (proving.edge_wrong, proving.cloud_wrong))
    return msgspec.structs.replace(
        certificate, **dict(zip(("edge_accuracy", "cloud_accuracy"), accuracies, strict=True))
    )


def _refusal(promise: Promise, chosen: Pairs, proving: Pairs, extra: Pairs | None, *, everything: bool) -> RefusedError:
    """Why there is no certificate, the best that can be had, and how many samples would do."""
    goal = promise.goal()
    found = curve(proving, goal.target)
    at = int(np.nanargmin(found.loss[:-1]))
    measured, n = float(found.loss[at]), len(proving)
    words = {ACCURACY: "accuracy of the pair", REGRET: "regret", KEPT_ACCURACY: "accuracy of what is kept"}
    if everything:
        reason = "it is proven only where every answer is sent, which needs no edge model"
    else:
        kept = f", which keeps {round(n * (1 - found.sent[at]))} of" if promise.target == KEPT_ACCURACY else ", on"
        reason = f"measured is {promise.shown(measured):.4f} at the best threshold{kept} {n} samples"
    best = _best(goal, chosen, proving, extra)
    needed = samples_needed(goal, proving)
    side = "at most" if promise.target == REGRET else "at least"
    advice = f"Proven by these samples is {side} {promise.shown(best):.4f}." if best is not None else ""
    if needed is None:
        advice += f" No number of samples would prove the target, if all answers are like those to these {n}."
    elif needed > n:
        advice += f" About {needed} samples in the proof would do, {math.ceil(needed / PROOF_SHARE)} in all."
    else:
        advice += f" The proof nearly succeeds with these {n} samples: twice as many may do."
    return RefusedError(
        f"{words[promise.target]} of {side} {promise.value:g} is not proven at {promise.confidence:.0%}: {reason}",
        advice=advice.strip(),
    )


def _best(goal: Goal, chosen: Pairs, proving: Pairs, extra: Pairs | None) -> float | None:
    """The smallest limit that is proven below sending everything, by bisection; None where none below 1 is."""
    low, high = goal.limit, 1.0
    for _ in range(_BEST_STEPS):
        middle = (low + high) / 2
        found = certify(msgspec.structs.replace(goal, limit=middle), chosen, proving, extra)
        low, high = (low, middle) if found is not None and np.isfinite(found) else (middle, high)
    return None if high >= 1.0 else high

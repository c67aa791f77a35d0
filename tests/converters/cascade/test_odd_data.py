"""Certificates from data that nobody would choose: few values, copies, tied scores, labels out of range, NaN."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from converters.cascade.calibrate import Calibration, Promise, calibrate
from converters.cascade.certifying import Goal, Pairs, certify
from converters.cascade.scores import below_ties, tied
from converters.data.samples import Samples
from edgekit.bundle.manifest import Task
from edgekit.certificate.document import REGRET, Bound
from edgekit.certificate.scoring import FUNCTIONS, HEAD, ScoreFunction, score
from edgekit.errors import DataError, EdgekitError, RefusedError

BOUND = Bound("a" * 64, "", "onnxruntime", "1.0", "cloud", "b" * 64)
TASK = Task("classification", "scores", "probabilities")
CLASSES = 4


class World:
    """Inputs with `values` values, each with its own answers of both models and its own truth."""

    def __init__(self, values: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        easy = rng.random(values)
        self.truth = rng.integers(0, CLASSES, values)
        edge = (self.truth + (rng.random(values) < 0.46 * (1 - easy) ** 1.85)) % CLASSES
        cloud = (self.truth + (rng.random(values) < 0.15 * (1 - easy) ** 1.85)) % CLASSES
        sure = 0.3 + 0.69 * easy
        self.edge = np.repeat(((1 - sure) / (CLASSES - 1))[:, None], CLASSES, axis=1).astype(np.float32)
        self.edge[np.arange(values), edge] = sure
        self.cloud = np.eye(CLASSES, dtype=np.float32)[cloud]

    def samples(self, n: int, seed: int) -> Samples:
        values = np.random.default_rng(seed).integers(0, len(self.truth), n)
        return Samples({"x": values.astype(np.float32)[:, None]}, self.truth[values])

    def certified(self, promise: Promise, samples: Samples, more: Samples | None = None) -> Calibration:
        def runs(answers):
            return lambda inputs: {"scores": answers[inputs["x"][:, 0].astype(int)]}

        return calibrate(promise, TASK, runs(self.edge), runs(self.cloud), samples, more, BOUND)

    def regret(self, found: Calibration) -> float:
        kept = score(found.certificate.score, self.edge) >= found.certificate.threshold
        return float(np.mean(kept & (self.edge.argmax(1) != self.cloud.argmax(1))))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cloud: 20 * cloud - 10, "values from -10 to 10 where probabilities are due"),
        (lambda cloud: cloud * 0.9 + 0.1, "rows that do not add up to 1, as the device's do"),
        (lambda cloud: cloud.astype(np.float64), "scores is float64, and float32 on the device"),
    ],
)
def test_a_cloud_model_that_devices_would_refuse_gets_no_certificate(change, says: str) -> None:
    """Logits and sigmoids beside a softmax were certified, and no device took a single answer."""
    world = World(300, 3)
    world.cloud = change(world.cloud)
    with pytest.raises(DataError, match=f"devices would refuse the cloud model's answers: .*{says}"):
        world.certified(Promise("regret", 0.05, 0.95), world.samples(900, 3))


def test_the_promise_holds_where_inputs_have_few_values() -> None:
    """Equal rows in one part made the proof a sample of three fifths of the values: one in six broke its promise."""
    broken = 0
    for seed in range(60):
        world = World(50, seed)
        found = world.certified(Promise("regret", 0.05, 0.95), world.samples(1000, seed))
        broken += world.regret(found) > 0.05
        assert found.repeated == 950
    assert broken <= 4


def test_samples_of_the_proof_are_not_taken_again_as_those_without_labels() -> None:
    """A file given twice would count each sample twice."""
    world = World(10**6, 1)
    data = world.samples(500, 2)
    with pytest.raises(DataError, match="500 of the 500 samples of --unlabeled are in --data too"):
        world.certified(Promise("regret", 0.05, 0.95), data, msgspec.structs.replace(data, labels=None))


def test_a_sorted_file_of_samples_without_labels_is_taken_by_chance() -> None:
    """Only so many are used as help; the first ones of a file in the order of its classes would flatter the edge."""
    rng = np.random.default_rng(5)

    def draw(n: int) -> Pairs:
        sure = rng.random(n)
        return Pairs(sure, rng.random(n) < 0.4 * (1 - sure))

    fit, proof, more = draw(300), draw(300), draw(60_000)
    goal = Goal(REGRET, 0.05, 0.05)
    plain, ordered = certify(goal, fit, proof, more), certify(goal, fit, proof, more.take(np.argsort(more.differs)))
    assert plain is not None
    assert ordered is not None
    assert abs(plain - ordered) < 0.05


@pytest.mark.parametrize("name", FUNCTIONS)
def test_answers_with_equal_scores_stay_together_on_another_machine(name: str) -> None:
    """The last digits of a score depend on the order of a sum; a threshold among equal scores keeps all of them."""
    rng = np.random.default_rng(8)
    rows = np.stack([rng.permutation([247.0, *[1.0] * 9]) for _ in range(400)]).astype(np.float32) / 256
    weights = tuple(rng.normal(size=6)) if name == HEAD else ()
    scores = score(ScoreFunction(name, "probabilities", 1.37, weights), rows)
    together = tied(scores)
    assert len(np.unique(together)) == 1
    threshold = below_ties(float(together[0]))
    assert (scores >= threshold).all()
    assert (scores * (1 - np.sign(scores) * 1e-14) >= threshold).all()
    assert not (scores - np.abs(scores) * 1e-6 >= threshold).any()


def test_a_label_that_is_no_class_is_refused_wherever_it_stands() -> None:
    """-1 for no label counted as a wrong answer of both models, unless it was among the first fifth."""
    world = World(10**6, 1)
    data = world.samples(1000, 2)
    for row in range(0, 1000, 250):
        labels = data.labels.copy()
        labels[row] = -1
        with pytest.raises(DataError, match="from -1 to 3, and the models have 4 classes: 1 of 1000") as caught:
            world.certified(Promise("accuracy", 0.8, 0.95), msgspec.structs.replace(data, labels=labels))
        assert "--unlabeled takes them" in caught.value.advice


def test_labels_in_another_form_are_explained() -> None:
    """Columns for classes, and whole numbers saved as floats: the message has the shape of the file."""
    world = World(10**6, 1)
    data = world.samples(1000, 2)
    for labels in (np.eye(4)[data.labels], data.labels.astype(float)):
        with pytest.raises(DataError, match=r"of shape \[1000") as caught:
            world.certified(Promise("accuracy", 0.8, 0.95), msgspec.structs.replace(data, labels=labels))
        assert "y.argmax(axis=1)" in caught.value.advice


def test_answers_with_nan_are_counted() -> None:
    """The message says of which model, and how many."""
    world = World(1000, 1)
    world.edge[::100] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinity: \d+ of the edge model, of 600 samples"):
        world.certified(Promise("regret", 0.05, 0.95), world.samples(3000, 2))


def test_a_refusal_says_how_few_answers_were_kept_and_does_not_ask_for_samples_in_vain() -> None:
    """A few kept answers without a fault are no accuracy; and an edge that never is right gets no number."""
    world = World(10**6, 1)
    with pytest.raises(RefusedError, match=r"at the best threshold, which keeps \d+ of 60 samples") as caught:
        world.certified(Promise("kept-accuracy", 0.98, 0.95), world.samples(100, 2))
    assert "samples in the proof would do" in caught.value.advice
    world.edge[:] = 0.25
    with pytest.raises(EdgekitError, match="proven only where every answer is sent") as caught:
        world.certified(Promise("accuracy", 0.9, 0.95), world.samples(1000, 2))
    assert "No number of samples would prove the target" in caught.value.advice

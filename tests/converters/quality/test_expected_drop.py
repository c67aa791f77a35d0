"""The drop that the float model's probabilities foretell: its value, and that it finds the lucky candidate."""

import numpy as np
import pytest

from converters.quality.expected_drop import expected_drop


def test_a_changed_decision_costs_the_difference_of_the_probabilities():
    """Rows whose decision stays cost nothing; scores that are no probabilities go through softmax first."""
    reference = np.tile(np.array([[0.7, 0.2, 0.1]]), (10, 1))
    labels = np.array([0] * 7 + [1] * 2 + [2])  # as often as the probabilities say, so the temperature is 1
    assert expected_drop(reference, reference, labels) == 0.0
    answers = reference.copy()
    answers[3] = [0.1, 0.8, 0.1]
    for scores in (reference, np.log(reference) + 3.0):
        assert expected_drop(scores, answers, labels) == pytest.approx(0.5 / 10, rel=0.1)


def test_a_model_that_is_too_sure_of_itself_foretells_no_more_than_it_should():
    """The temperature is fitted to the labels; labels outside of the classes are left out of it."""
    reference = np.tile(np.array([[20.0, 0.0]]), (1000, 1))
    labels = (np.arange(1000) % 4 == 0).astype(int)  # class 0 in three of four rows
    labels[:4] = -1, 7, 2, -5
    answers = reference.copy()
    answers[:100] = [0.0, 1.0]
    assert expected_drop(reference, answers, labels) == pytest.approx(0.1 * 0.5, abs=0.025)
    assert expected_drop(reference, answers, np.full(1000, 9)) <= 0.1


def test_it_finds_the_lucky_candidate():
    """All of twelve candidates truly lose two points, and the least measured drop is often below one, by luck.

    The least expected drop is near the true one, in most of 200 draws.
    """
    rng, rows, lucky, foretold, true = np.random.default_rng(0), 400, [], [], []
    for _ in range(200):
        sure = 1.0 - 0.5 * rng.beta(0.5, 3.0, rows)  # the probability of the float model's class, of two
        reference = np.stack([sure, 1.0 - sure], axis=1)
        labels = (rng.uniform(size=rows) > sure).astype(int)
        found = []
        for _ in range(12):
            changed = rng.uniform(size=rows) < 0.5 * (1.0 - sure)  # unsure rows change more often
            answers = np.where(changed[:, None], reference[:, ::-1], reference)
            measured = float(np.mean(labels == 0) - np.mean(answers.argmax(axis=1) == labels))
            found.append((measured, expected_drop(reference, answers, labels)))
        true.append(float(np.mean(0.5 * (1.0 - sure) * (2.0 * sure - 1.0))))
        lucky.append(min(found)[0])
        foretold.append(min(found)[1])
    assert np.mean(true) > 0.02
    assert np.mean(np.array(lucky) <= 0.01) > 0.3
    assert np.mean(np.array(foretold) <= 0.01) < 0.1
    assert np.mean(foretold) == pytest.approx(np.mean(true), rel=0.3)

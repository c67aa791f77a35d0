"""Which rows are kept and why, and what is given up where there is no room."""

from __future__ import annotations

import numpy as np
import pytest

from device_agents.inference.watch.observation import Observation
from device_agents.spool.rules import (
    Ask,
    Entry,
    Rule,
    make_room,
    new_id,
    reasons_of,
    row_count,
    row_of,
    upload_order,
)
from edgekit.bundle.manifest import Task
from edgekit.mqtt.sample_reasons import HARD, SampleReason, value_of
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 2))
SCORES = TensorSpec("scores", DType.FLOAT32, (None, 3))
TASK = Task("classification", "scores", "probabilities")
LOCAL = np.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3]], np.float32)
CLOUD = np.array([[0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]], np.float32)
UNSURE = np.array([False, True, True])


def seen(**fields: object) -> Observation:
    values = {
        "model": "m",
        "version": "1.0.0",
        "digest": "d",
        "task": TASK,
        "input_specs": (X,),
        "output_specs": (SCORES,),
        "inputs": {"x": np.arange(6, dtype=np.float32).reshape(3, 2)},
        "local": {"scores": LOCAL},
        "unsure": UNSURE,
        **fields,
    }
    return Observation(**values)  # type: ignore[arg-type]


def test_each_row_has_its_own_reason() -> None:
    """Unsure rows are hard; where the cloud tier answered, it matters whether the two decide the same."""
    assert reasons_of(seen(), 3) == [None, "unsure", "unsure"]
    assert reasons_of(seen(cloud={"scores": CLOUD}), 3) == ["refuted", "unsure", "disagreement"]
    assert reasons_of(seen(cloud={"scores": LOCAL}), 3) == ["explored", "unsure", "unsure"]
    rows = np.array([False, False, True])
    assert reasons_of(seen(cloud={"scores": CLOUD}, cloud_rows=rows), 3) == [None, "unsure", "disagreement"]


def test_answers_without_a_decision_are_not_compared() -> None:
    """A task without scores has no disagreement, and another shape of the cloud's answer is none."""
    other = seen(task=Task(), unsure=None, cloud={"scores": CLOUD})
    assert reasons_of(other, 3) == ["explored"] * 3
    assert reasons_of(seen(cloud={"scores": CLOUD[:, :2]}), 3) == ["explored", "unsure", "unsure"]


def test_multilabel_answers_differ_in_any_label() -> None:
    """Each label is compared at its own half."""
    task = Task("multilabel", "scores", "logits")
    local = np.array([[1.0, -1.0, 2.0]], np.float32)
    for cloud, expected in ((local * 3, "explored"), (local * [1, -1, 1], "refuted")):
        found = seen(task=task, local={"scores": local}, inputs={"x": np.zeros((1, 2))}, unsure=np.array([False]))
        assert reasons_of(found._replace(cloud={"scores": cloud.astype(np.float32)}), 1) == [expected]


def test_rows_are_taken_without_their_sample_axis() -> None:
    """A free axis is the sample axis, wherever it is; a first axis of one too; other fixed tensors are whole."""
    assert row_count(seen()) == 3
    np.testing.assert_array_equal(row_of((X,), seen().inputs, 1, 3)["x"], [2, 3])
    last = TensorSpec("x", DType.FLOAT32, (2, None))
    np.testing.assert_array_equal(row_of((last,), {"x": np.array([[1, 2], [3, 4]])}, 1, 2)["x"], [2, 4])
    fixed = TensorSpec("x", DType.FLOAT32, (1, 2))
    found = seen(input_specs=(fixed,), inputs={"x": np.ones((1, 2), np.float32)})
    assert row_count(found) == 1
    assert row_of((fixed,), found.inputs, 0, 1)["x"].shape == (2,)
    assert row_of((TensorSpec("x", DType.FLOAT32, (4,)),), {"x": np.ones(4)}, 0, 1)["x"].shape == (4,)


def test_an_output_that_counts_something_else_is_left_out() -> None:
    """Boxes of one image, as many as there are, also none."""
    for boxes in (0, 2):
        found = row_of((SCORES,), {"scores": np.ones((boxes, 3), np.float32)}, 0, 1)
        assert found == {}
    empty = seen(local={"scores": np.ones((1, 0), np.float32)}, cloud={"scores": np.ones((1, 0), np.float32)})
    assert reasons_of(empty._replace(unsure=None), 1) == ["explored"]


def test_a_request_whose_rows_cannot_be_told_apart_is_not_kept() -> None:
    """An output for the whole request, or inputs with different numbers of rows."""
    whole = TensorSpec("scores", DType.FLOAT32, (1, 3))
    assert row_count(seen(output_specs=(whole,), local={"scores": LOCAL[:1]})) is None
    two = {"x": np.ones((3, 2), np.float32), "y": np.ones((2, 2), np.float32)}
    assert row_count(seen(input_specs=(X, TensorSpec("y", DType.FLOAT32, (None, 2))), inputs=two)) is None


def test_a_rule_takes_its_reasons_and_its_share() -> None:
    """Other answers only by chance, and other models never."""
    rule = Rule((SampleReason.UNSURE,), 0.25, "m")
    assert rule.choose("m", SampleReason.UNSURE, 0.9) == "unsure"
    assert rule.choose("m", SampleReason.REFUTED, 0.9) is None
    assert rule.choose("m", None, 0.2) == "random"
    assert rule.choose("m", None, 0.25) is None
    assert rule.choose("n", SampleReason.UNSURE, 0.0) is None
    assert not Rule().active
    assert Rule(HARD).choose("m", None, 0.0) is None  # a share of 0 takes nothing


def test_an_ask_ends_by_number_and_by_time() -> None:
    """Both limits hold."""
    ask = Ask(Rule(HARD), 1, 10.0)
    assert ask.holds(9.9)
    assert not ask.holds(10.0)
    assert not Ask(Rule(HARD), 0, 10.0).holds(0.0)


def entry(value: int, number: int, size: int = 10) -> Entry:
    return Entry(f"{value}{number:09d}{'a' * 16}", size)


def test_the_oldest_of_the_least_value_goes_first() -> None:
    """As many as needed, and never one that is worth more than the new one."""
    old = [entry(3, 1), entry(1, 3), entry(1, 2), entry(5, 4)]
    assert make_room(old, entry(3, 9), 50) == []
    assert make_room(old, entry(3, 9), 49) == [entry(1, 2)]
    assert make_room(old, entry(3, 9), 20) == [entry(1, 2), entry(1, 3), entry(3, 1)]
    assert make_room(old, entry(3, 9), 19) is None  # only the sample of value 5 is left, which stays
    assert make_room(old, entry(2, 9), 29) is None
    assert make_room([], entry(5, 1, 51), 50) is None


def test_ids_rise_and_the_most_valuable_is_sent_first() -> None:
    """The number follows the newest of all; of one value, the oldest is sent first."""
    first = new_id(SampleReason.REFUTED, [], "0" * 16)
    second = new_id(SampleReason.REFUTED, [Entry(first, 1)], "1" * 16)
    low = new_id(SampleReason.RANDOM, [Entry(first, 1), Entry(second, 1)], "2" * 16)
    entries = [Entry(one, 1) for one in (low, second, first)]
    assert [one.id for one in upload_order(entries)] == [first, second, low]
    assert [Entry(one, 1).order[1] for one in (first, second, low)] == [1, 2, 3]


@pytest.mark.parametrize("reason", SampleReason)
def test_every_reason_has_a_value(reason: SampleReason) -> None:
    """One digit, so that it fits an id."""
    assert 1 <= value_of(reason) <= 9

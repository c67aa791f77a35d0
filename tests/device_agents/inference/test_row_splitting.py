"""Rows of a request on their way to the cloud tier and back."""

import numpy as np

from device_agents.inference.row_splitting import joined, may_split, take, unsure_rows, unusable_rows
from edgekit.bundle.manifest import Task
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (2, None))  # the rows are along the second axis
SCORES = TensorSpec("scores", DType.FLOAT32, (None, 2))
WHOLE = TensorSpec("whole", DType.FLOAT32, (1, 2))
ROWS = np.array([True, False, True])


def test_rows_are_taken_and_joined_along_the_axis_of_each_tensor():
    """The device's own answers stay where nothing was sent."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert take([X], {"x": x}, ROWS)["x"].tolist() == [[0, 2], [3, 5]]
    local = np.zeros((3, 2), np.float32)
    result = joined([SCORES], {"scores": local}, {"scores": np.ones((2, 2), np.float32)}, ROWS)
    assert result["scores"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert not local.any()


def test_a_tensor_without_rows_of_its_own_keeps_the_request_whole():
    """Every input and output must have one entry a row."""
    x, scores = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    assert may_split([X], [SCORES], {"x": x}, {"scores": scores}, 3)
    assert not may_split([X], [SCORES], {"x": x}, {"scores": scores[:1]}, 3)
    outputs = {"scores": scores, "whole": np.zeros((1, 2), np.float32)}
    assert not may_split([X], [SCORES, WHOLE], {"x": x}, outputs, 3)


def test_a_row_with_nan_is_unsure():
    """NaN is not at or above any threshold."""
    task = Task("classification", "scores", "probabilities")
    scores = np.array([[0.9, 0.1], [np.nan, 0.1], [0.6, 0.4]], np.float32)
    assert unsure_rows(None, None, task, {"scores": scores}, 0.7).tolist() == [False, True, True]
    assert unsure_rows(None, None, Task(), {"scores": scores}, 0.7) is None


def test_the_rows_with_nan_are_told_apart_where_the_output_has_rows():
    """In any output; not in one without an axis of rows, and not where outputs disagree on the number of rows."""
    scores, whole = np.zeros((3, 2), np.float32), np.zeros((1, 2), np.float32)
    assert unusable_rows([SCORES, WHOLE], {"scores": scores, "whole": whole}) is None
    scores[1, 0] = np.nan
    assert unusable_rows([SCORES, WHOLE], {"scores": scores, "whole": whole}).tolist() == [False, True, False]
    other = TensorSpec("other", DType.FLOAT32, (2, None))  # its rows are along the second axis
    more = np.array([[0, 0, np.nan], [0, 0, 0]], np.float32)
    assert unusable_rows([SCORES, other], {"scores": scores, "other": more}).tolist() == [False, True, True]
    assert unusable_rows([SCORES, other], {"scores": scores, "other": more[:, 2:]}) is None
    assert unusable_rows([SCORES, WHOLE], {"scores": scores, "whole": whole * np.nan}) is None

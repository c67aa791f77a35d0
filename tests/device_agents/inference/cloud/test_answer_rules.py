"""Checks of the cloud tier's answers against the device's own model."""

from __future__ import annotations

import numpy as np
import pytest

from device_agents.inference.cloud.answer_rules import Expected, checked
from device_agents.inference.cloud.failures import CloudInterfaceError, CloudUnusableError
from edgekit.bundle.manifest import Task
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 4))
Y = TensorSpec("y", DType.FLOAT32, (None, 2))
BOXES = TensorSpec("boxes", DType.FLOAT32, (None, 4))
SENT = {"x": np.zeros((1, 4), np.float32)}
LOCAL = {"y": np.array([[0.6, 0.4]], np.float32)}
CLASSES = Task("classification", "y", "probabilities")
EXPECTED = Expected((Y,), (X,), SENT, CLASSES, LOCAL)


def rows(*values: list[float]) -> dict[str, np.ndarray]:
    return {"y": np.array(values, np.float32).reshape(-1, len(values[0]) if values else 2)}


def test_a_fitting_answer_passes_without_what_nobody_needs() -> None:
    """Other outputs are dropped unchecked: NaN in them harms nobody."""
    other = {"logits": np.array([np.nan])}
    assert list(checked({**rows([0.9, 0.1]), **other}, EXPECTED)) == ["y"]
    assert checked(rows([1.004, 0.0]), EXPECTED)  # int8 probabilities may add up to more
    assert list(checked({"a": np.ones(1)}, Expected())) == ["a"]  # the device does not know the model


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({}, "output 'y' is missing"),
        (rows([0.5, 0.3, 0.2]), r"shape is \[1, 3\]"),
        ({"y": np.array([[0.5, 0.5]])}, "dtype is float64"),
        ({"y": np.array([0.5, 0.5], np.float32)}, r"shape is \[2\]"),
    ],
)
def test_another_interface_is_told_as_such(outputs: dict[str, np.ndarray], says: str) -> None:
    """Names, dtypes, shapes and the number of classes are those of the device's model."""
    with pytest.raises(CloudInterfaceError, match=says):
        checked(outputs, EXPECTED)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (rows([0.5, 0.5], [0.5, 0.5]), "2 rows for the 1 that were sent"),
        (rows(), "0 rows for the 1 that were sent"),
        (rows([np.nan, 0.5]), "y has NaN"),
        (rows([np.inf, 0.5]), "y has infinite values"),
        (rows([3.1, -2.0]), r"values from -2 to 3\.1 where probabilities are due"),
        (rows([0.9, 0.9]), "do not add up to 1"),
    ],
)
def test_values_that_cannot_be_right_are_refused(outputs: dict[str, np.ndarray], says: str) -> None:
    """Rows, finiteness, the range of probabilities."""
    with pytest.raises(CloudUnusableError, match=says):
        checked(outputs, EXPECTED)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_an_answer_to_inputs_that_are_not_finite_is_no_fault_of_the_tier(odd: float) -> None:
    """Else a sensor that sends NaN opens the breaker for everybody's requests. Its shape is checked still."""
    sent = EXPECTED._replace(sent={"x": np.array([[0, odd, 0, 0]], np.float32)}, local=rows([np.nan, np.nan]))
    assert np.isnan(checked(rows([np.nan, np.nan]), sent)["y"]).all()
    with pytest.raises(CloudUnusableError, match="2 rows for the 1"):
        checked(rows([np.nan, np.nan], [np.nan, np.nan]), sent)


def test_the_devices_own_answer_says_what_is_usual() -> None:
    """Masked values may be infinite, several classes may be likely, and a free axis may count boxes."""
    logits = EXPECTED._replace(task=Task("classification", "y", "logits"))
    assert checked(rows([3.0, -2.0]), logits)
    masked = logits._replace(local=rows([1.0, -np.inf]))
    assert checked(rows([3.0, -np.inf]), masked)
    several = EXPECTED._replace(local=rows([0.9, 0.8]))
    assert checked(rows([0.7, 0.9]), several)
    detector = Expected((BOXES,), (X,), SENT, Task(), {"boxes": np.zeros((7, 4), np.float32)})
    assert checked({"boxes": np.zeros((3, 4), np.float32)}, detector)


def test_only_the_outputs_that_the_client_wants_must_be_there() -> None:
    """A client that asks for one output gets it, whatever the others are."""
    two = Expected((Y, BOXES), (X,), SENT, CLASSES, wanted=("y",))
    assert list(checked(rows([0.9, 0.1]), two)) == ["y"]
    with pytest.raises(CloudInterfaceError, match="'boxes' is missing"):
        checked(rows([0.9, 0.1]), two._replace(wanted=()))

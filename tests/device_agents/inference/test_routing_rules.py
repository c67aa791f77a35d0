"""The rules for routes, scores."""

from __future__ import annotations

import numpy as np
import pytest

from device_agents.inference.routing_rules import (
    Decision,
    Reason,
    Route,
    after_running,
    before_running,
    score,
    without_local,
)
from edgekit.bundle.manifest import Task
from edgekit.errors import RuntimeLoadError
from edgekit.serving.session.queue import DeadlineError, OverloadedError
from edgekit.serving.worker.errors import WorkerCrashedError, WorkerRestartingError
from edgekit.tensors import usable

CLASSES = Task("classification", "y", "probabilities")


@pytest.mark.parametrize(
    ("route", "has_local", "has_cloud", "place", "reason"),
    [
        ("auto", True, True, Route.LOCAL, Reason.REQUESTED),
        ("auto", True, False, Route.LOCAL, Reason.REQUESTED),
        ("auto", False, True, Route.CLOUD, Reason.NO_LOCAL_MODEL),
        ("auto", False, False, Route.NONE, Reason.NO_LOCAL_MODEL),
        ("local-only", True, True, Route.LOCAL, Reason.REQUESTED),
        ("local-only", False, True, Route.NONE, Reason.NO_LOCAL_MODEL),
        ("cloud-only", True, True, Route.CLOUD, Reason.REQUESTED),
        ("cloud-only", False, True, Route.CLOUD, Reason.REQUESTED),
        ("cloud-only", True, False, Route.NONE, Reason.NO_CLOUD),
    ],
)
def test_the_request_and_what_there_is_decide_where_to_ask_first(
    route: str, has_local: bool, has_cloud: bool, place: Route, reason: Reason
) -> None:
    """local-only never leaves the device, cloud-only never stays."""
    assert before_running(route, has_local=has_local, has_cloud=has_cloud) == Decision(place, reason)


def test_inputs_out_of_distribution_go_before_the_score_and_after_an_unusable_answer() -> None:
    """Nothing is sent where there is no cloud tier, and a request that stays here stays."""

    def decided(*, route: str = "auto", usable: bool = True, has_cloud: bool = True) -> Reason:
        return after_running(route, score=0.9, threshold=0.8, has_cloud=has_cloud, usable=usable, outlying=True).reason

    assert decided() is Reason.OUT_OF_DISTRIBUTION
    assert decided(usable=False) is Reason.LOCAL_ERROR
    assert decided(has_cloud=False) is Reason.CONFIDENT
    assert decided(route="local-only") is Reason.REQUESTED


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OverloadedError("m", 64, 1.0), Reason.OVERLOADED),
        (DeadlineError("m", 1, 1.0), Reason.DEADLINE),
        (WorkerRestartingError("m", 0, 4.0), Reason.LOCAL_ERROR),  # the model's own fault
        (WorkerCrashedError("died of SIGSEGV"), Reason.LOCAL_ERROR),
        (RuntimeLoadError("no memory"), Reason.LOCAL_ERROR),
    ],
)
def test_why_the_local_model_gave_no_answer(error: OverloadedError | RuntimeLoadError, reason: Reason) -> None:
    """Each has its own reason in answers, metrics and telemetry."""
    assert without_local(error) is reason


@pytest.mark.parametrize(
    ("route", "found", "fine", "has_cloud", "place", "reason"),
    [
        ("auto", 0.9, True, True, Route.LOCAL, Reason.CONFIDENT),
        ("auto", 0.8, True, True, Route.LOCAL, Reason.CONFIDENT),
        ("auto", 0.79, True, True, Route.CLOUD, Reason.LOW_SCORE),
        ("auto", 0.79, True, False, Route.LOCAL, Reason.NO_CLOUD),
        ("auto", None, True, True, Route.LOCAL, Reason.NO_SCORE),
        ("auto", 0.99, False, True, Route.CLOUD, Reason.LOCAL_ERROR),
        ("auto", 0.99, False, False, Route.DEGRADED, Reason.LOCAL_ERROR),
        ("local-only", 0.1, True, True, Route.LOCAL, Reason.REQUESTED),
        ("local-only", 0.1, False, True, Route.LOCAL, Reason.REQUESTED),
    ],
)
def test_the_local_answer_is_kept_when_it_is_good_enough(
    route: str, found: float | None, fine: bool, has_cloud: bool, place: Route, reason: Reason
) -> None:
    """NaN is asked about first, then the score against the threshold."""
    decision = after_running(route, score=found, threshold=0.8, has_cloud=has_cloud, usable=fine)
    assert decision == Decision(place, reason)


def test_the_least_sure_row_is_the_score() -> None:
    """One unsure row of a batch makes the batch unsure."""
    y = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    assert score(CLASSES, {"y": y}) == pytest.approx(0.6)


def test_logits_are_put_through_a_softmax_that_does_not_overflow() -> None:
    """Huge logits are sure, equal ones are not; half precision does not overflow."""
    task = Task("classification", "y", "logits")
    assert score(task, {"y": np.array([[1e4, -1e4]], np.float32)}) == 1.0
    assert score(task, {"y": np.zeros((2, 4), np.float16)}) == pytest.approx(0.25)
    assert score(task, {"y": np.log(np.array([[0.7, 0.2, 0.1]]))}) == pytest.approx(0.7)


def test_what_has_no_score_has_none() -> None:
    """Other tasks, a missing output, no rows; and NaN is no confidence at all."""
    y = np.array([[0.9, 0.1]])
    assert score(Task(), {"y": y}) is None
    assert score(CLASSES, {"z": y}) is None
    assert score(CLASSES, {"y": np.zeros((0, 2))}) is None
    assert score(Task("classification", "y", ""), {"y": y}) is None
    assert score(CLASSES, {"y": np.array([[np.nan, 1.0]])}) == 0.0
    assert score(CLASSES, {"y": np.array([[1.004, 0.0]])}) == 1.0  # int8 probabilities may add up to more


def test_only_nan_makes_an_answer_unusable() -> None:
    """Infinity may be a masked logit; integers and bytes are always fine."""
    assert usable({"a": np.array([1.0, np.inf]), "b": np.array([1]), "c": np.array([b""], dtype=object)})
    assert not usable({"a": np.array([1.0]), "b": np.array([np.nan], np.float16)})

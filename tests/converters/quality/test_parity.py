"""Errors of steps that change answers."""

import numpy as np
import pytest

from converters.quality import parity
from edgekit.errors import ParityError


@pytest.mark.parametrize(
    ("kind", "words"), [(np.uint8, "whole numbers, by 1; expected equal"), (np.float32, "limit is")]
)
def test_whole_numbers_that_differ_are_told_apart_from_a_wrong_step(kind, words):
    """An answer between two whole numbers is rounded up here and down there: cutting the model helps."""
    expected = {"image": np.random.default_rng(0).integers(0, 200, (4, 6)).astype(kind)}
    found = {"image": expected["image"] + np.eye(4, 6, dtype=kind)}
    limits = parity.tolerances(expected, parity.FLOAT32_RELATIVE)
    compared = parity.compare(expected, found, runtime="LiteRT float32", where="here", decision="", limits=limits)
    with pytest.raises(ParityError, match=words) as caught:
        parity.require(compared)
    assert ("--cut" in caught.value.advice) == (kind is np.uint8)

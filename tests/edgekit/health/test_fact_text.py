"""Facts as the command line and the pages show them."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.health.fact_text import fact_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"onnxruntime": "1.31.1", "litert": "2.3.0"}, "litert 2.3.0, onnxruntime 1.31.1"),
        ({"coral-edgetpu": True}, "coral-edgetpu true"),
        (["asimd", "asimddp"], "asimd asimddp"),
        (48.123456789, "48.1235"),
        (24_105, "24105"),
        (False, "false"),
        ("", "-"),
        (None, "-"),
        ({}, "-"),
        ([], "-"),
    ],
)
def test_facts_are_text_for_people(value: Any, text: str) -> None:
    """Truth values as filters write them, and a dash for nothing."""
    assert fact_text(value) == text

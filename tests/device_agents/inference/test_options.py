"""The options of the inference service, by their names of today and of release 0.1.0."""

from __future__ import annotations

import pytest

from device_agents import InferenceService
from device_agents.inference.options import ServiceOptions, with_old_names
from edgekit.runtimes.providers import Acceleration


def test_arguments_of_the_last_release_are_taken_with_a_warning() -> None:
    """Each old argument sets the field that has its meaning now, and the warning names that field."""
    old = {"threads": 2, "threshold": 0.5, "deadline_ms": None, "providers": ["CPUExecutionProvider"]}
    with pytest.warns(DeprecationWarning, match=r"threshold=\.\.\.\) is now ServiceOptions\(fallback_threshold"):
        found = with_old_names(ServiceOptions(memory_budget_bytes=7), old)
    assert found == ServiceOptions(
        threads=2,
        memory_budget_bytes=7,
        fallback_threshold=0.5,
        acceleration=Acceleration(providers=("CPUExecutionProvider",)),
    )


async def test_the_service_takes_old_arguments_and_refuses_unknown_ones() -> None:
    """An embedding application of the last release still runs; a misspelled argument is an error that names it."""
    with pytest.warns(DeprecationWarning, match="threads"):
        async with InferenceService(threads=1) as service:
            assert service.models() == []
    with pytest.raises(TypeError, match="thread_count"):
        InferenceService(thread_count=1)

"""The order of the test files, and what one test must not leave to the next.

xdist hands out whole files in the order of collection (`--dist loadfile --no-loadscope-reorder`). A file that takes
long says so with LONG_SECONDS and starts before the others, the longest first, so that none of them runs alone at the
end.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from edgekit.repeats import LogFilter

# Controllers of tests that run at the same time must not share the address of the API.
os.environ.setdefault("EDGEKIT_API", "127.0.0.1:0")
NO_MACHINE = Path(__file__).parent / "no-emulated-machine"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of long files to the front. The order within a file, and of the other files, stays."""
    items.sort(key=lambda item: -getattr(getattr(item, "module", None), "LONG_SECONDS", 0))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Take the limits of log lines off pytest's handlers: a command run in a test leaves them there for later ones."""
    for handler in logging.getLogger().handlers:
        for one in [one for one in handler.filters if isinstance(one, LogFilter)]:
            handler.removeFilter(one)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide the emulated ARM machine from tests that do not need it: conversions would count instructions there."""
    if item.get_closest_marker("arm") is None:
        os.environ.setdefault("EDGEKIT_ARM", str(NO_MACHINE))
    elif os.environ.get("EDGEKIT_ARM") == str(NO_MACHINE):
        del os.environ["EDGEKIT_ARM"]

"""The order of the test files.

xdist hands out whole files in the order of collection (`--dist loadfile --no-loadscope-reorder`). A file that takes
long says so with LONG_SECONDS and starts before the others, the longest first, so that none of them runs alone at the
end.
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of long files to the front. The order within a file, and of the other files, stays."""
    items.sort(key=lambda item: -getattr(getattr(item, "module", None), "LONG_SECONDS", 0))

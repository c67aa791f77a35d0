"""The folder in which the demo keeps what later runs can use."""

from __future__ import annotations

import os
from pathlib import Path


def demo_cache() -> Path:
    """A folder in the user's cache, under XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "edgekit" / "demo"

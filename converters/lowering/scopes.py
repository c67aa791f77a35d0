"""Names of layers as tensors of the lowered file carry them. Rules only."""

from __future__ import annotations

import re


def scope_of(name: str) -> str:
    """The layer's name in TensorFlow's alphabet."""
    return re.sub(r"[^A-Za-z0-9_./\\-]", "_", name).lstrip("_./\\-") or "layer"

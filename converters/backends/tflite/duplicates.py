"""Names of the weights that litert-quantizer duplicates: it makes them of text, and its next step needs bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from litert_quantizer.transformations import duplicate_tensor as step


@contextlib.contextmanager
def byte_names() -> Iterator[None]:
    """Give duplicates their name as bytes, as all tensors have it: litert-quantizer 0.11 fails with TypeError."""
    original = step.duplicate_tensor

    def duplicate(given: Any) -> Any:
        made = original(given)
        tensor = given.subgraph.tensors[made.output_tensor_id]
        if isinstance(tensor.name, str):
            tensor.name = tensor.name.encode()
        return made

    step.duplicate_tensor = duplicate
    try:
        yield
    finally:
        step.duplicate_tensor = original

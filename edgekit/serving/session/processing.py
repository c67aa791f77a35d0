"""The processing steps of a loaded bundle before and after its model, on a thread of their own and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgekit.bundle.manifest import Manifest
from edgekit.decoding import open_processor
from edgekit.preprocess import Processing, Processor, Raw
from edgekit.serving.session.queue import MIN_RETRY_SECONDS, OverloadedError
from edgekit.tensors import Array, TensorSpec

T = TypeVar("T")


class SessionProcessing:
    """A Processor on a thread of its own, so that a large image blocks neither the event loop nor the model.

    Args:
        processor: The bundle's processor.
        model: Name for messages.
        queue_limit: Most requests that may wait or be processed.
    """

    def __init__(self, processor: Processor, model: str, queue_limit: int) -> None:
        self._processor, self._model, self._limit = processor, model, queue_limit
        # Never shut down: requests from before a switch still finish here. It ends when nothing refers to it any more.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"bytes-{model}")
        self._pending = 0

    @property
    def raw(self) -> tuple[Raw, ...]:
        """Inputs that clients may send as bytes."""
        return self._processor.raw

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs after the steps that follow the model."""
        return self._processor.outputs

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Names of classes by output."""
        return self._processor.labels

    def has_raw(self, inputs: Mapping[str, Array]) -> bool:
        """True where `inputs` has bytes to decode."""
        return self._processor.has_raw(inputs)

    async def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Decode inputs for the model; see `Processor.before`.

        Raises:
            OverloadedError: too many requests wait to be decoded.
            DataError: the bytes cannot be decoded.
        """
        if self._pending >= self._limit:
            raise OverloadedError(self._model, self._pending, MIN_RETRY_SECONDS)
        return await self._call(lambda: self._processor.before(inputs))

    async def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Make the answer from the model's outputs; see `Processor.after`."""
        return await self._call(lambda: self._processor.after(outputs))

    async def _call(self, function: Callable[[], T]) -> T:
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)
        finally:
            self._pending -= 1


async def open_processing(manifest: Manifest, folder: Path, queue_limit: int) -> SessionProcessing | None:
    """The processing of a bundle; None where it has none.

    Raises:
        ManifestError, MissingExtraError: as `open_processor`.
    """
    if not isinstance(manifest.processing, Processing):
        return None
    processor = await asyncio.to_thread(open_processor, manifest, folder)
    assert processor is not None
    return SessionProcessing(processor, manifest.name, queue_limit)

"""What a loaded bundle does before and after its model, off the event loop and in bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgekit.decoding import open_processor
from edgekit.errors import DataError
from edgekit.manifest import Manifest
from edgekit.preprocess import Processing, Processor, Raw
from edgekit.serving.queue import LEAST_RETRY_SECONDS, OverloadedError
from edgekit.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from edgekit.serving.sessions import Session

T = TypeVar("T")
PARAMETER = "edgekit_postprocess"


class SessionProcessing:
    """A Processor on a thread of its own: a large image holds up neither the event loop nor the model.

    Args:
        processor: Of the bundle.
        model: Its name, for messages.
        queue_limit: Most requests that may wait or be worked on.
    """

    def __init__(self, processor: Processor, model: str, queue_limit: int) -> None:
        self._processor, self._model, self._limit = processor, model, queue_limit
        # Never shut down: requests that came before a switch still finish here. It ends with the last that knows it.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"bytes-{model}")
        self._pending = 0

    @property
    def raw(self) -> tuple[Raw, ...]:
        """What clients may send as bytes."""
        return self._processor.raw

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What is answered when the outputs were worked on."""
        return self._processor.outputs

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Names of classes, by the output that counts them."""
        return self._processor.labels

    def wanted(self, inputs: Mapping[str, Array]) -> bool:
        """Whether something in `inputs` is to be decoded."""
        return self._processor.wanted(inputs)

    async def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs; see `Processor.before`.

        Raises:
            OverloadedError: too many requests wait to be decoded.
            DataError: the bytes cannot be decoded.
        """
        if self._pending >= self._limit:
            raise OverloadedError(self._model, self._pending, LEAST_RETRY_SECONDS)
        return await self._call(lambda: self._processor.before(inputs))

    async def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers of the model's outputs; see `Processor.after`."""
        return await self._call(lambda: self._processor.after(outputs))

    async def _call(self, function: Callable[[], T]) -> T:
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)
        finally:
            self._pending -= 1


class Prepared(NamedTuple):
    """A request whose bytes are decoded, with the session that is to answer it."""

    session: Session | None
    inputs: Mapping[str, Array]
    postprocess: bool

    async def finish(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """What the client gets of the model's `outputs`."""
        if self.session is None or self.session.processing is None or not self.postprocess:
            return outputs
        return await self.session.processing.after(outputs)


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


def as_sent(session: Session | None, postprocess: bool | None) -> bool:
    """True where a request has nothing to be decoded and nothing to be done after it; else `prepare` has to see."""
    return not postprocess and (session is None or session.processing is None)


async def prepare(
    current: Callable[[], Session | None], inputs: Mapping[str, Array], postprocess: bool | None
) -> Prepared:
    """Decode what was sent as bytes, for the session that answers now.

    Args:
        current: Gives the active session. Where it changes while bytes are decoded, they are decoded anew for the next.
        inputs: As the client sent them.
        postprocess: Whether the outputs are worked on; None where they are when bytes were sent.

    Raises:
        OverloadedError, DataError: as `SessionProcessing.before`; DataError too where `postprocess` is asked of a model
            without any.
    """
    session = current()
    while True:
        processing = session.processing if session else None
        if session is not None and processing is None and postprocess:
            raise DataError(f"{PARAMETER} is true, but model {session.manifest.name} does nothing after its outputs")
        if processing is None or not processing.wanted(inputs):
            return Prepared(session, inputs, bool(postprocess))
        found = await processing.before(inputs)
        if current() is session:
            return Prepared(session, found, postprocess is not False)
        session = current()


def parse_postprocess(parameters: Mapping[str, Any]) -> bool | None:
    """The value of `PARAMETER`; None where it is absent.

    Raises:
        DataError: it is neither true nor false.
    """
    value = parameters.get(PARAMETER)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{PARAMETER} is {value!r}, expected true or false")
    return value


def answered(session: Session, inputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> Sequence[TensorSpec]:
    """The outputs that a request gets from `session`.

    Raises:
        DataError: as `parse_postprocess`.
    """
    postprocess = parse_postprocess(parameters)
    processing = session.processing
    if processing is None or not (processing.wanted(inputs) if postprocess is None else postprocess):
        return session.runtime.outputs
    return processing.outputs

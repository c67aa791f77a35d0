"""Decoding the inputs of a request for the session that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.errors import DataError
from edgekit.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from edgekit.serving.session.session import Session


POSTPROCESS_PARAMETER = "edgekit_postprocess"


class Prepared(NamedTuple):
    """A request with decoded inputs.

    Attributes:
        session: The session that will answer it; None where only the cloud tier answers.
        inputs: Decoded inputs by name.
        postprocess: Whether the bundle's steps after the model are done.
    """

    session: Session | None
    inputs: Mapping[str, Array]
    postprocess: bool

    async def finish(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """The client's answer from the model's `outputs`."""
        if self.session is None or self.session.processing is None or not self.postprocess:
            return outputs
        return await self.session.processing.after(outputs)


def as_sent(session: Session | None, postprocess: bool | None) -> bool:
    """True where a request needs no processing before or after the model; else call `prepare`."""
    return not postprocess and (session is None or session.processing is None)


async def prepare(
    current: Callable[[], Session | None], inputs: Mapping[str, Array], postprocess: bool | None
) -> Prepared:
    """Decode inputs that were sent as bytes, for the active session.

    Args:
        current: Returns the active session. When it changes during decoding, the inputs are decoded again for the new
            one.
        inputs: As the client sent them.
        postprocess: Whether to do the bundle's steps after the model; None: only where inputs were sent as bytes.

    Raises:
        OverloadedError, DataError: as `SessionProcessing.before`; DataError too where `postprocess` is True and the
            bundle has no such steps.
    """
    session = current()
    while True:
        processing = session.processing if session else None
        if session is not None and processing is None and postprocess:
            raise DataError(
                f"{POSTPROCESS_PARAMETER} is true, but the bundle of model {session.manifest.name} has no steps after "
                "the model; leave the parameter out"
            )
        if processing is None or not processing.has_raw(inputs):
            return Prepared(session, inputs, bool(postprocess))
        decoded = await processing.before(inputs)
        if current() is session:
            return Prepared(session, decoded, postprocess is not False)
        session = current()


def parse_postprocess(parameters: Mapping[str, Any]) -> bool | None:
    """The value of `POSTPROCESS_PARAMETER`; None where it is absent.

    Raises:
        DataError: the value is neither true nor false.
    """
    value = parameters.get(POSTPROCESS_PARAMETER)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{POSTPROCESS_PARAMETER} is {value!r}, expected true or false")
    return value


def answered_outputs(
    session: Session, inputs: Mapping[str, Array], parameters: Mapping[str, Any]
) -> Sequence[TensorSpec]:
    """The outputs that a request gets from `session`.

    Raises:
        DataError: as `parse_postprocess`.
    """
    postprocess = parse_postprocess(parameters)
    processing = session.processing
    if processing is None or not (processing.has_raw(inputs) if postprocess is None else postprocess):
        return session.outputs
    return processing.outputs

"""A sealed sample as the registry's store keeps it. Pure."""

from __future__ import annotations

import msgspec

from edgekit.errors import DataError


class StoredSample(msgspec.Struct, frozen=True):
    """One sample in the store.

    Attributes:
        model, digest: The bundle that answered, as the device's head names it.
        at, received: Wall clock seconds of the device, and of the controller.
        head: Envelope of the SampleHead, which the controller has verified.
        sealed: The sample, sealed for the operator; its context is its id.
        format: Format number.
    """

    model: str
    digest: str
    at: float
    received: float
    head: bytes
    sealed: bytes
    format: int = 1


_DECODER = msgspec.msgpack.Decoder(StoredSample)


def encode_stored(sample: StoredSample) -> bytes:
    """MessagePack bytes."""
    return msgspec.msgpack.encode(sample)


def decode_stored(data: bytes) -> StoredSample:
    """Parse a stored sample. Raises DataError."""
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a stored sample: {error}") from error
    if found.format != 1:
        raise DataError(f"the stored sample has format {found.format}, this release reads 1")
    return found

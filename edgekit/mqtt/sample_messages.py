"""Wire messages of samples for retraining. Pure."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import msgspec


class SampleHead(msgspec.Struct, frozen=True):
    """The facts of a sample that a device signs, in its first SamplePart.

    Attributes:
        device, fleet: Names of the sender.
        id: Id of the sample.
        model, digest: Model and digest of the bundle that answered.
        at: Wall clock seconds of the device.
        size, sha256: Bytes and digest of the sealed sample.
    """

    device: str
    fleet: str
    id: str
    model: str
    digest: str
    at: float
    size: int
    sha256: str


class SamplePart(msgspec.Struct, frozen=True):
    """``device/<id>/sample``: one part of a sealed sample, at most 64 KiB as a whole.

    The controller answers the first part, and the last, with an Answer of the sample's id: `index` is the number of
    parts that it has, and `total` the number of all; where they are equal, the sample is stored.

    Attributes:
        id: Id of the sample.
        index, total: Number of the part from 0, and of all parts.
        data: Bytes of the sealed sample.
        head: Envelope of a SampleHead; in the first part only.
    """

    id: str
    index: int
    total: int
    data: bytes
    head: bytes = b""

"""A model file of TensorFlow, as the main process names it to the TensorFlow process."""

from __future__ import annotations

import msgspec


class SourceFile(msgspec.Struct, frozen=True):
    """A model file of TensorFlow.

    Attributes:
        path: Its absolute path.
        format: ``keras``, ``h5`` or ``savedmodel``.
        signature: The signature of a SavedModel to convert; empty for the default.
    """

    path: str
    format: str
    signature: str = ""

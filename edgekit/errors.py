"""All error classes of edgekit, in one branch for each party that must act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EdgekitError(Exception):
    """Base class of every error that edgekit raises on purpose.

    Args:
        message: What was found and what was expected.
        advice: One sentence on what to do next; may be empty.
        foreign_text: The message of another library that is the cause; commands print it with --verbose only.
    """

    exit_code = 1

    def __init__(self, message: str, *, advice: str = "", foreign_text: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        self.foreign_text = foreign_text

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling the constructor, because errors are sent between processes."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[EdgekitError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> EdgekitError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


# --- the author of an input must correct it


class AuthorError(EdgekitError):
    """A file, setting or choice of a person is wrong."""


class RecipeError(AuthorError):
    """A recipe or preset is not valid."""


class ManifestError(AuthorError):
    """A manifest or bundle is malformed."""


class SettingsError(AuthorError):
    """A settings file, environment variable or flag is not valid."""


class DataError(AuthorError):
    """A data file has the wrong form, shape or dtype."""


class NotFoundError(AuthorError):
    """The named thing does not exist."""


class ConflictError(AuthorError):
    """An action that is allowed only once was done before."""


# --- data that must not be trusted


class VerificationError(EdgekitError):
    """Data failed a trust check and must not be used."""

    exit_code = 3


class SignatureError(VerificationError):
    """A signature is missing, wrong, or from a key that may not sign this document."""


class DigestMismatchError(VerificationError):
    """Bytes do not have the digest that signed metadata states.

    Args:
        what: Name of the data, for messages.
        expected: The signed sha256, hex.
        found: The sha256 of the bytes that were read, hex.
    """

    def __init__(self, what: str, *, expected: str, found: str) -> None:
        super().__init__(f"{what}: digest does not match: expected sha256 {expected}, found {found}")
        self.what = what
        self.expected = expected
        self.found = found


class SealError(VerificationError):
    """A sealed file was changed or belongs to another bundle or path, or its key does not open it."""


class DowngradeError(VerificationError):
    """A version is older than a version seen before."""


class ExpiredError(VerificationError):
    """Signed metadata has passed its expiry."""


class ClockError(ExpiredError):
    """The clock of this machine is wrong, so expiry cannot be checked."""


# --- bundle and device do not fit


class CompatibilityError(EdgekitError):
    """A bundle does not fit a device; `mismatches` has every reason.

    Args:
        mismatches: One sentence per reason.
    """

    exit_code = 3

    def __init__(self, mismatches: Sequence[str]) -> None:
        super().__init__("the bundle does not fit this device: " + "; ".join(mismatches))
        self.mismatches = tuple(mismatches)


# --- the model cannot be converted


class ConversionError(EdgekitError):
    """A model could not be converted."""


class ModelFormatError(ConversionError):
    """A model file is damaged, or of a format that edgekit cannot read."""


class UnsupportedOpError(ConversionError):
    """An operator cannot be converted.

    Args:
        op: The operator's type, for example ``Einsum``.
        layer: The node's name in the model.
        backend: The backend or target that does not support it.
    """

    def __init__(self, op: str, layer: str, *, backend: str, advice: str = "", foreign_text: str = "") -> None:
        text = f"operator {op} (layer {layer!r}) cannot be converted for {backend}"
        super().__init__(text, advice=advice, foreign_text=foreign_text)
        self.op = op
        self.layer = layer


class CalibrationError(ConversionError):
    """Calibration found no usable ranges."""


class ParityError(ConversionError):
    """A conversion step changed the outputs by more than its tolerance."""


class RefusedError(EdgekitError):
    """No candidate met the budget, or the gate was not passed."""

    exit_code = 3


# --- try again later


class UnavailableError(EdgekitError):
    """Something outside this process is unavailable at the moment; try again later.

    Attributes:
        waiting: A word for the reason, where a device that meets the error waits on purpose (``metered``); else empty.
    """

    waiting = ""


class StoreError(UnavailableError):
    """A blob store could not be read or written."""


class TransportError(UnavailableError):
    """The broker cannot be reached, or does not accept a message."""


class PacketTooLargeError(TransportError):
    """A message is larger than the broker accepts, so sending it again does not help."""


class CloudError(UnavailableError):
    """The cloud tier did not give a usable answer."""


class DiskError(UnavailableError):
    """The local disk is full or failing."""


class ShortageError(DiskError):
    """A file could not be used for want of memory or file descriptors; the disk and its bytes may be right."""


class SpaceError(DiskError):
    """There is not enough space on the local disk, now or in the middle of a write; files keep their old content."""

    waiting = "disk"


class MissingExtraError(UnavailableError):
    """An optional Python package is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of edgekit that installs it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the Python package {module!r}, which is not installed",
            advice=f"Run: pip install 'edgekit[{extra}]'",
        )


# --- the device cannot run the model


class RuntimeLoadError(EdgekitError):
    """A runtime could not load or run an artifact."""


class ArenaFullError(RuntimeLoadError):
    """A run needs more memory than the device allows the model."""


class SelfTestError(EdgekitError):
    """A model's outputs for the golden inputs are outside the manifest's tolerance."""

    exit_code = 3

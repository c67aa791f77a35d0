"""The error tree: one branch for each party that must act. Nothing else lives here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EdgekitError(Exception):
    """Root of every error that edgekit raises on purpose.

    Args:
        message: What was found and what was expected.
        advice: One sentence that tells a person what to do; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was raised, whatever the constructor asks for: errors come back from other processes."""
        return _as_raised, (type(self), self.args, self.__dict__)


def _as_raised(kind: type[EdgekitError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> EdgekitError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


# --- the author of an input must mend it


class AuthorError(EdgekitError):
    """Something that a person wrote or chose is wrong."""


class RecipeError(AuthorError):
    """A recipe or preset is not valid."""


class ManifestError(AuthorError):
    """A manifest or bundle is malformed."""


class SettingsError(AuthorError):
    """A settings file, environment variable or flag is not valid."""


class DataError(AuthorError):
    """A data file has the wrong form, shape or dtype."""


class NotFoundError(AuthorError):
    """The thing that was named does not exist."""


# --- nobody may trust it


class VerificationError(EdgekitError):
    """Something failed a trust check; it must not be used."""

    exit_code = 3


class SignatureError(VerificationError):
    """A signature is missing, wrong, or by a key that may not sign this."""


class DigestMismatchError(VerificationError):
    """Bytes do not have the digest that signed metadata states.

    Args:
        what: What was read, for the reader of a report.
        expected: The sha256 that was signed, hex.
        found: The sha256 of what was read, hex.
    """

    def __init__(self, what: str, *, expected: str, found: str) -> None:
        super().__init__(f"{what}: digest does not match: expected sha256 {expected}, found {found}")
        self.what = what
        self.expected = expected
        self.found = found


class SealError(VerificationError):
    """A sealed file is not what was sealed for this bundle and place, or its key does not open it."""


class DowngradeError(VerificationError):
    """A version is older than one that was seen before."""


class ExpiredError(VerificationError):
    """Signed metadata has passed its expiry."""


class ClockError(ExpiredError):
    """The clock of this machine cannot be right, so it cannot be said what has expired."""


# --- the wrong device


class CompatibilityError(EdgekitError):
    """A bundle does not fit a device; carries every reason.

    Args:
        mismatches: One sentence a reason.
    """

    exit_code = 3

    def __init__(self, mismatches: Sequence[str]) -> None:
        super().__init__("the bundle does not fit this device: " + "; ".join(mismatches))
        self.mismatches = tuple(mismatches)


# --- the model cannot be converted


class ConversionError(EdgekitError):
    """A model could not be converted."""


class ModelFormatError(ConversionError):
    """A model file is damaged, or of a kind that cannot be read."""


class UnsupportedOpError(ConversionError):
    """An operator cannot be converted.

    Args:
        op: The operator's type, for example ``Einsum``.
        layer: The node's name in the model.
        backend: Who cannot take it.
    """

    def __init__(self, op: str, layer: str, *, backend: str, advice: str = "") -> None:
        super().__init__(f"operator {op} (layer {layer!r}) cannot be converted for {backend}", advice=advice)
        self.op = op
        self.layer = layer


class CalibrationError(ConversionError):
    """Calibration found no usable ranges."""


class ParityError(ConversionError):
    """A conversion step changed the answers by more than its tolerance."""


class RefusedError(EdgekitError):
    """Nothing met the budget or the gate that was asked for."""

    exit_code = 3


# --- try again later


class UnavailableError(EdgekitError):
    """Something outside is not there at the moment."""


class StoreError(UnavailableError):
    """A blob store could not be read or written."""


class TransportError(UnavailableError):
    """The broker is not there, or does not take a message."""


class CloudError(UnavailableError):
    """The cloud tier did not answer."""


class DiskError(UnavailableError):
    """The local disk is full or failing."""


class MissingExtraError(UnavailableError):
    """An optional dependency is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of this distribution that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the Python package {module!r}, which is not installed",
            advice=f"Run: pip install 'edgekit[{extra}]'",
        )


# --- the device failed the model


class RuntimeLoadError(EdgekitError):
    """A runtime could not load or run an artifact."""


class ArenaFullError(RuntimeLoadError):
    """A run needs more memory than the device allows its model."""


class SelfTestError(EdgekitError):
    """A model's answers to the golden inputs are outside the tolerance that its manifest states."""

    exit_code = 3

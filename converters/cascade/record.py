"""The key ``cascade`` of report.json: the certificate, the score functions that were tried, and the measured curve."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from converters.cascade.calibrate import Calibration
from edgekit.errors import DataError

_POINTS = 100


def with_cascade(report: bytes, result: Calibration, version: str) -> bytes:
    """The bytes of report.json of another version, with the key ``cascade``; an earlier calibration's is replaced.

    Raises:
        DataError: the report is no JSON object.
    """
    try:
        document = msgspec.json.decode(report, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"report.json of the edge bundle cannot be read: {error}") from error
    document["version"] = version
    document["cascade"] = cascade(result)
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def cascade(result: Calibration) -> dict[str, Any]:
    """The findings of a calibration, as JSON values.

    ``repeated`` counts samples whose inputs equal those of another one, ``copies`` those that were left out for it.
    ``curve`` has at most 100 points of the samples of the proof: threshold, share sent, and the mean loss of the target
    (null where nothing counts); the last point sends everything, and its threshold is null.
    """
    certificate, found = result.certificate, result.proof
    at = np.unique(np.linspace(0, len(found.threshold) - 1, _POINTS).astype(int))
    return {
        "id": certificate.id,
        "certificate": msgspec.to_builtins(certificate),
        "served_by": certificate.bound.served_by,
        "scores": [{"name": one.function.name, "area": one.area} for one in result.tried],
        "naive": result.naive,
        "repeated": result.repeated,
        "copies": result.copies,
        "loss": {"measured": result.loss, "limit": result.limit},
        "curve": [
            {"threshold": _number(found.threshold[i]), "sent": float(found.sent[i]), "loss": _number(found.loss[i])}
            for i in at
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

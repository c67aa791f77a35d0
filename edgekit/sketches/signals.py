"""The signals of which devices send sketches, and the names of the sketches in telemetry. Pure rules."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

LATENCY = "latency"  # log2 of milliseconds from request to answer
SCORE = "score"  # of the local answer, 0 to 1
ROUTE = "route"  # index in ROUTES
CLASS = "class"  # index of the decision, of some requests
INPUT = "input."  # and the name of an input: values of some requests
TEMPERATURE = "temperature"  # of the device, in degrees Celsius, once a survey
ROUTES = ("local", "cloud", "degraded", "error")
AGENT = "agent"
# The smallest bin widths, as powers of two: an eighth of an octave (9 %), 1/64, one class, one degree.
EXPONENTS = {LATENCY: -3, SCORE: -6, ROUTE: 0, CLASS: 0, TEMPERATURE: 0}
DIGEST_CHARACTERS = 12
MAX_SKETCHES = 64  # of one message
_KEY = re.compile(r"([a-z0-9][a-z0-9-]{0,62})(?:@([0-9a-f]{12}))?/([a-z]+(?:\.[^\x00-\x1f]{1,64})?)")
_SHORTEST_MS = 2.0**-10


class Signal(NamedTuple):
    """The subject of a sketch: a model (AGENT for the device), the first characters of its digest, and the signal."""

    model: str
    digest: str
    name: str

    @property
    def key(self) -> str:
        """The name in telemetry, such as ``digits@0123456789ab/latency``."""
        return f"{self.model}@{self.digest}/{self.name}" if self.digest else f"{self.model}/{self.name}"

    @property
    def bundle(self) -> str:
        """The bundle, such as ``digits@0123456789ab``."""
        return self.key.partition("/")[0]


def parse_signal(key: str) -> Signal | None:
    """The signal that a sketch's name stands for; None for a name of another form."""
    match = _KEY.fullmatch(key)
    return Signal(match[1], match[2] or "", match[3]) if match else None


def latency_value(seconds: float) -> float:
    """A duration as the LATENCY sketch counts it."""
    return math.log2(max(seconds * 1000, _SHORTEST_MS))


def latency_ms(value: float) -> float:
    """The duration in milliseconds of a value of the LATENCY sketch."""
    return float(2.0**value)

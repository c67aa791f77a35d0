"""Types that several settings share, with their bounds and descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from edgekit.bounds import MAX_SECONDS

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
Port = Annotated[int, Meta(ge=0, le=65_535, extra={"unit": "TCP port"})]
FleetName = Annotated[str, Meta(description="Name of the fleet. It is part of every MQTT topic.")]
BrokerUrl = Annotated[
    str, Meta(description="URL of the MQTT broker: mqtt://[user[:password]@]host[:1883] or mqtts://...[:8883].")
]
BrokerCa = Annotated[
    Path | None,
    Meta(
        description="PEM file of the authority that signed the broker's certificate (mqtts:// only). Without it, the "
        "system's authorities are used."
    ),
]
BrokerKey = Annotated[
    Path | None, Meta(description="PEM file of the private key of broker_certificate (mqtts:// only).")
]

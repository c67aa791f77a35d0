"""Types that several settings share, with their bounds and descriptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from edgekit.bounds import MAX_SECONDS

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
TagValue = Annotated[str, Meta(max_length=255)]
MAX_TAGS = 20
# Names that a version of ONNX Runtime from 1.17 on knows (`onnxruntime.get_all_providers()`), whatever is installed.
PROVIDERS = tuple(
    f"{name}ExecutionProvider"
    for name in (
        *("CPU", "CUDA", "Tensorrt", "NvTensorRTRTX", "OpenVINO", "Dnnl", "Xnnpack", "ACL", "ArmNN", "QNN", "SNPE"),
        *("Nnapi", "VSINPU", "Rknpu", "CoreML", "Dml", "MIGraphX", "ROCM", "CANN", "VitisAI", "Tvm", "Azure", "Js"),
        *("WebNN", "WebGpu"),
    )
)
_TAG_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,57}")
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
BrokerKeepalive = Annotated[
    int,
    Meta(
        ge=5,
        le=3600,
        description="Longest silence on the connection to the broker, after which a ping is sent. Set it below the "
        "idle timeout of a proxy or NAT in between.",
    ),
]
BrokerKey = Annotated[
    Path | None, Meta(description="PEM file of the private key of broker_certificate (mqtts:// only).")
]


def check_url(name: str, url: str) -> None:
    """Check that the setting `name` is the base URL of an HTTP server.

    Raises:
        ValueError: it is not.
    """
    try:
        parts = urlsplit(url)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_fine = is_fine and not (parts.query or parts.fragment) and not any(one.isspace() for one in url)
        (parts.hostname or "").encode("idna")  # as the resolver does it
    except ValueError:  # a malformed port or address; UnicodeError is one
        is_fine = False
    if not is_fine:
        raise ValueError(f"{name} is {url!r}, expected http://HOST[:PORT] or https://HOST[:PORT]")


def check_tags(tags: Mapping[str, str]) -> None:
    """Check the tags of a device: filters must be able to name them.

    Raises:
        ValueError: there are too many, or a key has other characters than letters, digits, - and _.
    """
    if len(tags) > MAX_TAGS:
        raise ValueError(f"tags has {len(tags)} keys, at most {MAX_TAGS} are allowed")
    if odd := [key for key in tags if not _TAG_KEY.fullmatch(key)]:
        raise ValueError(f"tags has the key {odd[0]!r}, expected up to 58 letters, digits, - and _")


def check_providers(name: str, providers: Sequence[str]) -> None:
    """Check that the setting `name` has execution providers that ONNX Runtime knows; they need not be installed.

    Raises:
        ValueError: one is unknown, which ONNX Runtime itself would skip without an error.
    """
    if odd := [one for one in providers if one not in PROVIDERS]:
        import difflib  # only for this error

        by_lower = {one.lower(): one for one in PROVIDERS}
        near = difflib.get_close_matches(odd[0].lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]!r}? " if near else ""
        raise ValueError(f"{name} has {odd[0]!r}, {hint}expected one of {', '.join(PROVIDERS)}")

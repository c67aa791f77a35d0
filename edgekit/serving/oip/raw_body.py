"""Requests whose whole body is one image, sound or text, recognized by their Content-Type. Rules only.

Headers take the place of the protocol's request parameters: ``Edgekit-Route: local-only`` is
``"edgekit_route": "local-only"``. Answers are JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import Raw
from edgekit.serving.oip.codec import JSON_TYPE, InferRequest

MEDIA_TYPES = {
    "image": ("image/jpeg", "image/png"),
    "sound": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "text": ("text/plain",),
}
_KINDS = {name: kind for kind, names in MEDIA_TYPES.items() for name in names}
_FAMILIES = ("image/", "audio/")
_CHARSETS = ("", "utf-8", "utf8", "us-ascii")
_PREFIX = b"edgekit-"


class Media(NamedTuple):
    """A media type that is not the protocol's own.

    Attributes:
        name: In lower case, without parameters.
        kind: ``image``, ``sound`` or ``text``; empty for an image or a sound that edgekit does not decode.
        charset: The stated character set in lower case; empty where none is stated.
    """

    name: str
    kind: str
    charset: str


@functools.lru_cache(maxsize=64)
def parse_media(value: bytes) -> Media | None:
    """The media type of a Content-Type; None for every other type, whose body is the protocol's JSON."""
    name, *parameters = (part.strip().lower() for part in value.decode("latin-1").split(";"))
    kind = _KINDS.get(name, "")
    if not kind and not name.startswith(_FAMILIES):
        return None
    stated = dict(parameter.partition("=")[::2] for parameter in parameters)
    return Media(name, kind, stated.get("charset", "").strip('"'))


def input_for(media: Media, raw: Sequence[Raw]) -> str | None:
    """The client's name of the input that a body fills: the only one that takes bytes, if it takes this kind."""
    return raw[0].name if len(raw) == 1 and raw[0].kind == media.kind else None


def accepted(raw: Sequence[Raw]) -> tuple[str, ...]:
    """The media types that a model accepts, the protocol's own last."""
    return (*(MEDIA_TYPES[raw[0].kind] if len(raw) == 1 else ()), JSON_TYPE)


def refusal(media: Media, model: str, raw: Sequence[Raw]) -> str:
    """The error message of a model that does not accept such a body; names what it accepts."""
    types = " or ".join(accepted(raw))
    several = f"; send {', '.join(one.name for one in raw)} as BYTES tensors" if len(raw) > 1 else ""
    return f"model {model!r} accepts a body of {types}, this is {media.name}{several}"


def parse_raw_body(body: bytes, media: Media, name: str, headers: Mapping[bytes, bytes]) -> InferRequest:
    """Make a request of such a body: one row of BYTES for the input `name`.

    Args:
        body: The whole HTTP body.
        media: Its type.
        name: As `input_for` returns it.
        headers: By lower-case name; headers that begin with ``edgekit-`` are the request's parameters.

    Raises:
        DataError: a text has another character set than UTF-8.
    """
    if media.kind == "text" and media.charset not in _CHARSETS:
        raise DataError(f"the text is in {media.charset[:40]!r}, expected utf-8")
    value = np.empty(1, dtype=object)
    value[0] = body
    parameters = {
        header.decode("latin-1").replace("-", "_"): _value(text)
        for header, text in headers.items()
        if header.startswith(_PREFIX)
    }
    return InferRequest(inputs={name: value}, parameters=parameters)


def _value(text: bytes) -> Any:
    """The header's value as a number or boolean, else as text."""
    try:
        return msgspec.json.decode(text, type=bool | int | float)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text.decode("latin-1")

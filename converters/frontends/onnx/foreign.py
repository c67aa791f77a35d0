"""Text of errors that ONNX's own C++ code raises, in one line that a person can read."""

from __future__ import annotations

import re

_NOISE = re.compile(
    r"/\S+\.(?:h|cc|cpp)(?::\d+:?)?|\x1b\[[0-9;]*m|==> Context:|\[ONNXRuntimeError\] : \d+ : \w+ :|\[\w+Error\]"
)
_ASSERTION = re.compile(r"^.*Assertion `.*?` failed:\s*(?=\S)", re.DOTALL)
LONGEST = 300


def one_line(error: BaseException) -> str:
    """The message without source paths, failed assertions, escape codes and line breaks; at most 300 characters."""
    text = " ".join(_NOISE.sub(" ", _ASSERTION.sub("", str(error))).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


_NAMED = re.compile(r"op_type:\s*\"?([A-Za-z]\w*)(?:, node name: ([^)\s]+))?|Name: (\S*) OpType: ([A-Za-z]\w*)")


def place_of(error: BaseException) -> str:
    """The operator and node that the checker's message names, for messages of edgekit; empty where it names none."""
    found = _NAMED.search(str(error))
    if found is None:
        return ""
    kind, name = found[1] or found[4], (found[2] or found[3] or "").rstrip(":)")
    return f": operator {kind}" + (f" (layer {name!r})" if name else "") + " does not fit its inputs or options"

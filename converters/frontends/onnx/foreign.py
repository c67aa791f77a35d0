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

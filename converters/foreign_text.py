"""Turns errors of other libraries into errors of edgekit, and their messages into one line that a person can read."""

from __future__ import annotations

import re
import traceback

from edgekit.errors import ConversionError

LONGEST = 300
SHOWN = "edgekit --verbose shows its text"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Lines that say where in a library's own code something happened, or only announce a message.
_NOISE = re.compile(
    r"""^(File\s".*|in\suser\scode:|Traceback\b.*|\|?\s*at\s0x.*|Arguments\sreceived\sby\b.*|[•*]\s.*|\[\[\{\{node.*
        |<stack\straces\sunavailable>|Graph\sexecution\serror:|Detected\sat\snode\b.*
        |Exception\sencountered\swhen\scalling\b.*|Refer\sto\sthe\soriginal\sgraph\b.*|[~^\s]+)$""",
    re.VERBOSE,
)
_SOURCES = re.compile(r"\S*/(?:site-packages|dist-packages|tensorflow|onnxruntime)/\S+:\d+:?|\S+\.(?:cc|cpp|h):\d+:?")
_LOCATIONS = re.compile(
    r"<unknown>:0:\s*|loc\((?:callsite|fused)\(.*$|\[Op:\w+\](?:\sname:)?|\{\{function_node\s[^}]*\}\}|\btorch\._dynamo\.exc\."
)


def plain_text(error: BaseException | str) -> str:
    """The message of `error` without escape codes, lines of source code and addresses; at most 300 characters."""
    text = _ESCAPES.sub("", str(error))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    # A line of source code follows each line "File ...".
    after_file = [False, *(line.startswith('File "') for line in lines)]
    kept = [line for line, code in zip(lines, after_file, strict=False) if line and not code and not _NOISE.match(line)]
    one = " ".join(_LOCATIONS.sub("", _SOURCES.sub("", line)).strip() for line in kept)
    one = " ".join(one.split())
    return one if len(one) <= LONGEST else f"{one[: LONGEST - 4].rstrip()} ..."


def named(error: BaseException) -> str:
    """The kind of `error` and its message in one line."""
    text = plain_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def failure(library: str, work: str, error: BaseException) -> ConversionError:
    """The error of edgekit for an error of `library` that edgekit has no words for; its text is for --verbose.

    Args:
        library: Its name.
        work: What it was doing, for example ``quantizing the file``.
        error: Its error.
    """
    where = "".join(traceback.format_tb(error.__traceback__)[-1:]).strip()  # some errors have no other text
    return ConversionError(
        f"{library} failed while {work} with {type(error).__name__} ({SHOWN})", foreign_text=plain_text(error) or where
    )

"""Messages of LiteRT as one line for people: the operator, and what is wrong. The layer is only in the file. Pure."""

from __future__ import annotations

import re

LONGEST = 300
_NO_OPERATOR = re.compile(
    r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'.*?(?:Registration failed\.|$)", re.DOTALL
)
_NO_CUSTOM = re.compile(r"Encountered unresolved custom op: (\w+)\..*", re.DOTALL)
_NODE = re.compile(r"\s*Node number (\d+) \((\w+)\) failed to (prepare|invoke)\.?")
_SOURCE = re.compile(r"(?:\S*/)?[\w.-]+\.(?:h|cc|cpp|c):\d+:?\s*")
# The end of a sentence with the next one behind it, without a space: LiteRT joins the messages of several runs.
_END = re.compile(r"(failed to (?:prepare|invoke)\.|was not true\.)(?=\S)")
_CONDITION = re.compile(r"(\S+(?: [!=<>]=? \S+)?) was not true\.")


def text_of(error: Exception | str) -> str:
    """The message without source files and line breaks, with its operator in words; at most 300 characters."""
    text = _SOURCE.sub("", _END.sub(r"\1 ", str(error)))
    text = _NO_OPERATOR.sub(r"it has no operator \1 of version \2, which a newer LiteRT may have", text)
    text = _NO_CUSTOM.sub(r"it has no custom operator \1", text)
    text = _CONDITION.sub(r"the condition \1 does not hold.", text)
    found = _NODE.search(text)
    if found:
        why = ". ".join(dict.fromkeys(" ".join(_NODE.sub("", text).split()).rstrip(".").split(". ")))
        verb = "prepared" if found[3] == "prepare" else "run"
        text = f"operator {found[2]} (number {found[1]}) cannot be {verb}" + (f": {why}" if why else "")
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4].rstrip()} ..."


def node_of(text: str) -> int | None:
    """The number of the operator that a message of LiteRT, or `text_of` it, names; None where it names none."""
    found = re.search(r"Node number (\d+)|operator \w+ \(number (\d+)\)", text)
    return None if found is None else int(found[1] or found[2])

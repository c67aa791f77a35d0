"""Messages of ONNX Runtime as one line for people: the operator and its layer, and what is wrong."""

from __future__ import annotations

import re

LONGEST = 300
OTHER_OPSET = "Export the model with other types or another opset, for example 17, or use a newer ONNX Runtime."
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |\x1b\[[0-9;]*m")
# A file and a line, and the signature of a function with its namespace.
_SOURCE = re.compile(
    r"(?:/\S+/)?[\w.-]+\.(?:h|hpp|cc|cpp|cu):\d+:? ?(?:[\w:<>{},&*~ ]*::[\w<>{},&*~ ]*\([^)]*\)(?: const)? ?)?"
)
_RAN = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", re.DOTALL)
_TYPES = re.compile(
    r"Type Error: Type parameter \(\w+\) of Optype \((\w+)\) bound to different types \(tensor\((\w+)\) and "
    r"tensor\((\w+)\)\)? ?\)?in node \((.*?)\)\.?",
    re.DOTALL,
)
_TYPE = re.compile(
    r"Type Error: Type '(?:tensor\()?(\w+)\)?' of (?:input|output) parameter \((.*?)\) of operator \((\w+)\) in node "
    r"\((.*?)\) is invalid\.?",
    re.DOTALL,
)
_RESULT = re.compile(
    r"Type Error: Type \(tensor\((\w+)\)\) of output arg \((.*?)\) of node \((.*?)\) does not match expected type "
    r"\(tensor\((\w+)\)\)\.?",
    re.DOTALL,
)
_SHAPE = re.compile(r"Node \((.*?)\) Op \((\w+)\) \[(?:Shape|Type)InferenceError\] ?", re.DOTALL)
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*?)'", re.DOTALL)


def text_of(error: Exception) -> str:
    """The message without codes, places in source files, escape codes and line breaks; at most 300 characters."""
    text = _CODE.sub("", str(error))
    text = _RAN.sub(lambda found: f"operator {found[1]} (layer {found[2]!r}): ", text)
    text = _NO_KERNEL.sub(
        lambda found: f"it does not run operator {found[1]} of opset {found[2]} with these types (layer {found[3]!r})",
        text,
    )
    text = _TYPES.sub(r"operator \1 (layer '\4') gets values of the types \2 and \3, which it must not mix", text)
    text = _TYPE.sub(r"operator \3 (layer '\4') does not take the type \1 (tensor \2)", text)
    text = _RESULT.sub(r"the operator (layer '\3') gives the type \4 for tensor \2, stated is \1", text)
    text = _SHAPE.sub(r"operator \2 (layer '\1'): ", text.removeprefix("This is an invalid model. "))
    text = " ".join(_SOURCE.sub("", text).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4].rstrip()} ..."


def advice_for(error: Exception) -> str:
    """Advice on what to do; empty where the message says nothing that is known."""
    return OTHER_OPSET if _NO_KERNEL.search(str(error)) else ""

"""Messages of LiteRT are shown in one line that names the operator, without its own source files."""

import pytest

from edgekit.runtimes.litert_messages import node_of, text_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Didn't find op for builtin opcode 'ELU' version '1'. An older version of this builtin might be supported. "
            "Are you using an old TFLite binary with a newer model?\n\nRegistration failed.\n",
            "it has no operator ELU of version 1, which a newer LiteRT may have",
        ),
        (
            "tensorflow/lite/kernels/div.cc:242 CheckNonZero(data) != 0 was not true.\nNode number 3 (DIV) failed to "
            "invoke.\n",
            "operator DIV (number 3) cannot be run: the condition CheckNonZero(data) != 0 does not hold",
        ),
        (
            "tensorflow/lite/kernels/div.cc:199 data[i] != zero_point was not true.Node number 18 (DIV) failed to "
            "invoke.tensorflow/lite/kernels/div.cc:199 data[i] != zero_point was not true.Node number 18 (DIV) failed "
            "to invoke.",
            "operator DIV (number 18) cannot be run: the condition data[i] != zero_point does not hold",
        ),
        ("Node number 7 (PAD) failed to prepare.", "operator PAD (number 7) cannot be prepared"),
        ("Encountered unresolved custom op: Flex.\nSee the instructions: https://", "it has no custom operator Flex"),
        ("x" * 400, "x" * 296 + " ..."),
    ],
)
def test_the_operator_is_named_in_words(text, expected):
    """Source files, questions and line breaks say nothing to users."""
    assert text_of(RuntimeError(text)) == expected


def test_the_number_of_the_operator_is_found_before_and_after():
    """With the number, the layer is found in the file."""
    raw = "Node number 3 (DIV) failed to invoke."
    assert node_of(raw) == node_of(text_of(raw)) == 3
    assert node_of("nothing") is None

import pickle

from converters.foreign_text import LONGEST, failure, named, plain_text

KERAS = """Exception encountered when calling Functional.call().

\x1b[1mThe structure of `inputs` doesn't match the expected structure.
Expected: {'second': 'b'}\x1b[0m

Arguments received by Functional.call():
  • inputs=['tf.Tensor(shape=(None, 4), dtype=float32)']
"""
AUTOGRAPH = """in user code:

    File "/usr/lib/python3/site-packages/keras/src/models/functional.py", line 258, in call  **
        raise ValueError(msg)

    ValueError: bad shape
"""


def test_escape_codes_and_arguments_are_left_out():
    """The message of Keras in one line, without escape codes and the list of arguments."""
    text = plain_text(KERAS)
    assert text == "The structure of `inputs` doesn't match the expected structure. Expected: {'second': 'b'}"


def test_lines_of_source_code_are_left_out():
    """A traceback inside a message is left out."""
    assert "functional.py" not in plain_text(AUTOGRAPH)
    assert plain_text(AUTOGRAPH).endswith("ValueError: bad shape")


def test_a_long_message_is_cut():
    """At most 300 characters are kept."""
    assert len(plain_text("word " * 200)) <= LONGEST
    assert plain_text("word " * 200).endswith("...")


def test_an_error_without_a_message_is_named_by_its_kind():
    """The kind stands before the message, and alone where there is none."""
    assert named(KeyError()) == "KeyError"
    assert named(ValueError("x")) == "ValueError: x"


def test_functions_and_operators_of_tensorflow_are_left_out():
    """The device and the function of an operator say nothing to a reader."""
    text = "{{function_node __wrapped__Mod_/job:localhost/device:CPU:0}} Integer division by zero [Op:Mod] name: "
    assert plain_text(text) == "Integer division by zero"


def test_an_error_without_words_of_ours_keeps_its_text_for_verbose():
    """The message names the library, its work and the kind of error; the text passes between processes."""
    error = pickle.loads(pickle.dumps(failure("litert-quantizer", "quantizing the file", ValueError("axis\n  is 7"))))
    text = "litert-quantizer failed while quantizing the file with ValueError (edgekit --verbose shows its text)"
    assert (str(error), error.foreign_text) == (text, "axis is 7")

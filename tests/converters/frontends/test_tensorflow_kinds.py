"""Keras models and SavedModels of the kinds that people have. One process makes them all."""

import subprocess
import sys

import numpy as np
import pytest

from converters.frontends import load_model
from edgekit.errors import ModelFormatError, SettingsError
from edgekit.tensors import DType

pytestmark = pytest.mark.heavy

MODELS = """
import sys, keras, tensorflow as tf
from keras import layers
folder = sys.argv[1]
keras.utils.set_random_seed(2)
a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
x = layers.Dense(8, activation="relu")(layers.Concatenate()([a, b]))
outputs = {"scores": layers.Dense(3, name="last")(x), "boxes": layers.Dense(2, name="other")(x)}
keras.Model({"b": b, "a": a}, outputs).save(folder + "/dicts.keras")
keras.Model([a, {"b": [b]}], [layers.Dense(2, name="one")(x), {"two": layers.Dense(2, name="three")(x)}]).save(
    folder + "/nested.keras")
keras.Model(a, [a * 2.0, a]).save(folder + "/through.keras")
logits = layers.Dense(3, name="logits")(a)
keras.Model(a, [keras.ops.argmax(logits, axis=-1), keras.ops.argmin(logits, axis=1, keepdims=True)]).save(
    folder + "/extremes.keras")
both = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")
steps = keras.Input((5, 2), name="steps")
keras.Model(steps, both(steps)).save(folder + "/both.keras")
for policy in ("mixed_float16", "bfloat16", "float64"):
    keras.config.set_dtype_policy(policy)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    x = layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(f"{folder}/{policy}.keras")
keras.config.set_dtype_policy("float32")
keras.Sequential([layers.Dense(2)]).save(folder + "/unbuilt.keras")

def spec(*shape, kind=tf.float32, name=None):
    return tf.TensorSpec(shape, kind, name=name)

class Heads(tf.Module):
    def __init__(self):
        super().__init__()
        self.w, self.count = tf.Variable(tf.random.normal((4, 3))), tf.Variable(tf.zeros((1, 4)))
    @tf.function(input_signature=[spec(None, 4, name="x")])
    def classify(self, x):
        return {"scores": tf.nn.softmax(x @ self.w)}
    @tf.function(input_signature=[spec(None, 4, name="x"), spec(None, 4, name="aux")])
    def embed(self, x, aux):
        return {"x": (x - aux) @ self.w}
    @tf.function(input_signature=[spec(1, 4, name="x")])
    def remember(self, x):
        self.count.assign(self.count * 0.5 + x)
        return {"y": self.count + 0.0}
    @tf.function(input_signature=[spec(None, kind=tf.string, name="text")])
    def length(self, text):
        return {"n": tf.cast(tf.strings.length(text), tf.float32)}
    @tf.function(input_signature=[tf.RaggedTensorSpec((None, None), tf.float32)])
    def ragged(self, x):
        return {"n": tf.reduce_sum(x, axis=1)}
    @tf.function(input_signature=[spec(1, 4, name="x")])
    def row(self, x):
        return {"y": x @ self.w}

class Called(Heads):
    @tf.function
    def __call__(self, x, training=False):
        return x @ self.w * (2.0 if training else 1.0)

heads = Heads()
tf.saved_model.save(heads, folder + "/heads", signatures={"classify": heads.classify, "embed": heads.embed})
for name in ("remember", "length", "ragged", "row"):
    kept = tf.Module()
    kept.heads, kept.call = heads, getattr(heads, name)
    plain = tf.Module()
    plain.w, plain.count, plain.call = heads.w, heads.count, kept.call
    tf.saved_model.save(plain, f"{folder}/{name}", signatures=kept.call)
called = Called()
for training in (True, False):
    called.__call__.get_concrete_function(spec(None, 4, name="x"), training)
for name in ("classify", "embed", "remember", "length", "ragged", "row"):
    setattr(called, name, None)
tf.saved_model.save(called, folder + "/called")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    subprocess.run([sys.executable, "-c", MODELS, str(folder)], check=True, capture_output=True)
    return folder


def checked(path, child, **options):
    """The loaded source, whose graph answers as its framework does."""
    source = load_model(path, child, **options)
    rng = np.random.default_rng(3)
    inputs = {
        spec.name: rng.normal(0, 1, (3, *spec.shape[1:])).astype(spec.dtype.numpy) for spec in source.graph.inputs
    }
    expected, found = source.answers(inputs), source.graph.run(inputs)
    assert list(expected) == [spec.name for spec in source.graph.outputs]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    return source


def names(source):
    return [[spec.name for spec in side] for side in (source.graph.inputs, source.graph.outputs)]


def test_dictionaries_give_their_keys_as_names(folder, child):
    """The keys are the names of inputs and outputs, in the order in which Keras flattens them."""
    assert names(checked(folder / "dicts.keras", child)) == [["a", "b"], ["boxes", "scores"]]


def test_nested_inputs_and_outputs_are_flattened(folder, child):
    """A list inside a dictionary inside a list is taken; an entry without a key has the name of its layer."""
    assert names(checked(folder / "nested.keras", child)) == [["a", "b"], ["one", "two"]]


def test_an_input_that_is_an_output_too_gets_a_name_of_its_own(folder, child):
    """A graph cannot have one name for both."""
    assert names(checked(folder / "through.keras", child))[1][1] == "a_output"


def test_the_largest_and_the_smallest_are_found(folder, child):
    """keras.ops.argmax has an ONNX form without the sign bits that Keras reads."""
    graph = checked(folder / "extremes.keras", child).graph
    assert graph.opaque is None
    assert [spec.shape for spec in graph.outputs] == [(None,), (None, 1)]


def test_sizes_that_tensorflow_knows_are_kept(folder, child):
    """tf2onnx forgets the length of a reversed sequence; the output keeps its fixed size."""
    assert checked(folder / "both.keras", child).graph.outputs[0].shape == (None, 5, 6)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16", "float64"])
def test_other_floats_become_float32(policy, folder, child):
    """Inputs, outputs and constants are float32, and the answers are those of the model in float32."""
    graph = checked(folder / f"{policy}.keras", child).graph
    assert {spec.dtype for spec in (*graph.inputs, *graph.outputs)} == {DType.FLOAT32}
    assert {value.dtype for value in graph.constants.values() if value.dtype.kind == "f"} == {np.dtype("float32")}


def test_a_model_without_an_input_says_what_to_add(folder, child):
    """A Sequential model that was never built is refused, and keras.Input is named."""
    with pytest.raises(ModelFormatError, match="no inputs of known shape") as caught:
        load_model(folder / "unbuilt.keras", child)
    assert "keras.Input" in caught.value.advice


def test_several_signatures_are_listed_with_their_inputs(folder, child):
    """Without a default, the error lists every signature with its inputs and outputs, and the option to give."""
    with pytest.raises(SettingsError) as caught:
        load_model(folder / "heads", child)
    assert "classify (x float32[?, 4] to scores)" in str(caught.value)
    assert "--signature classify" in caught.value.advice
    with pytest.raises(SettingsError, match="there is none named 'other'"):
        load_model(folder / "heads", child, signature="other")


def test_a_signature_is_converted_by_its_name(folder, child):
    """Each signature has its own interface; an output with the name of an input gets another name."""
    assert names(checked(folder / "heads", child, signature="classify")) == [["x"], ["scores"]]
    inputs, outputs = names(checked(folder / "heads", child, signature="embed"))
    assert (sorted(inputs), outputs) == (["aux", "x"], ["x_output"])


def test_a_signature_of_another_format_is_an_error(folder, child):
    """Only SavedModels have signatures."""
    with pytest.raises(SettingsError, match="no SavedModel"):
        load_model(folder / "dicts.keras", child, signature="x")


def test_a_model_without_signatures_is_called_outside_training(folder, child):
    """Models as TensorFlow Hub has them can only be called; the variant for training is left out."""
    source = checked(folder / "called", child)
    assert names(source) == [["x"], ["output"]]


def test_a_fixed_batch_of_one_is_answered_row_by_row(folder, child):
    """The source itself takes one row; several rows give the same answers."""
    checked(folder / "row", child)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("remember", "changes its own variables"),
        ("length", "input text takes text"),
        ("ragged", "x is a ragged tensor"),
    ],
)
def test_models_that_are_no_function_of_numbers_are_refused(name, message, folder, child):
    """State in variables, text and ragged tensors are refused by name, with what to do."""
    with pytest.raises(ModelFormatError, match=message) as caught:
        load_model(folder / name, child)
    assert caught.value.advice


def test_lost_weights_are_named(folder, child, tmp_path):
    """A folder without its variables says which files are missing."""
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "saved_model.pb").write_bytes((folder / "heads" / "saved_model.pb").read_bytes())
    with pytest.raises(ModelFormatError, match=r"variables/variables\.index"):
        load_model(tmp_path / "lost", child)


def test_a_process_that_ended_loads_the_source_again(folder, child):
    """After a crash, the next answers come from a new process."""
    source = load_model(folder / "heads", child, signature="classify")
    inputs = {"x": np.ones((2, 4), np.float32)}
    before = source.answers(inputs)["scores"]
    child._started().kill()
    child._started().wait()
    child.close()
    np.testing.assert_array_equal(source.answers(inputs)["scores"], before)

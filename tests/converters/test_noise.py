"""Ill-conditioned models are judged by their own noise, and a real fault of a step is still caught."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import convert
from converters.canonical import canonical_of
from converters.data.samples import Samples
from converters.frontends.load import Source
from converters.frontends.onnx import canonical
from converters.graph.float64 import answers_in_float64
from converters.graph.graph import Graph
from converters.noise import noise_of, noisiest_layer
from converters.quality.parity import FLOAT32_RELATIVE, tolerances
from edgekit.errors import ConversionError, ParityError
from tests.simulators.models import model_of

WIDTH = 32
RNG = np.random.default_rng(4)


def normalized(offset, damage=0.0):
    """A dense layer, then a normalization with the variance as E[x²] - E[x]²: an `offset` makes it lose all digits."""
    weights = np.random.default_rng(1).normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32)
    constants = {
        "weights": weights,
        "offset": np.full(WIDTH, offset, np.float32),
        "tiny": np.float32(1e-3),
        "scale": np.full(WIDTH, 1.0 + damage, np.float32),
    }
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "weights"], ["dense"], "dense"),
        make("Add", ["dense", "offset"], ["moved"], "offset"),
        make("ReduceMean", ["moved"], ["mean"], "mean", axes=[-1]),
        make("Mul", ["moved", "moved"], ["squares"], "squares"),
        make("ReduceMean", ["squares"], ["mean_squares"], "mean_of_squares", axes=[-1]),
        make("Mul", ["mean", "mean"], ["squared_mean"], "squared_mean"),
        make("Sub", ["mean_squares", "squared_mean"], ["rough"], "variance"),
        make("Abs", ["rough"], ["variance_abs"], "abs"),
        make("Add", ["variance_abs", "tiny"], ["padded"], "tiny"),
        make("Sqrt", ["padded"], ["deviation"], "deviation"),
        make("Sub", ["moved", "mean"], ["centered"], "centered"),
        make("Div", ["centered", "deviation"], ["unit"], "unit"),
        make("Mul", ["unit", "scale"], ["y"], "scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "normalized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def source(model, tmp_path, damaged=None):
    """A source whose canonical graph is that of `damaged`: a fault of the frontend."""
    graph = canonical(model, "test")
    read = graph if damaged is None else canonical(damaged, "test")
    return Source(tmp_path / "m.onnx", "onnx", "0" * 64, read, graph.run)


@pytest.fixture
def samples():
    """Inputs of the models above."""
    return Samples({"x": RNG.normal(0, 1, (40, WIDTH)).astype(np.float32)})


def test_ill_conditioned_model_is_named_with_the_layer_where_its_noise_starts(tmp_path, samples):
    """The variance by cancelling squares is found, and a model without an offset is not reported."""
    for offset, ill in ((300.0, True), (0.0, False)):
        one = source(normalized(offset), tmp_path)
        noise = noise_of(one, samples, one.answers(samples.inputs))
        assert noise.ill_conditioned == ill
        assert noise.layer == ("variance" if ill else "")
        assert ("ill-conditioned in float32" in noise.sentence) == ill


def test_fault_of_a_step_is_caught_in_either_model(tmp_path, samples):
    """A frontend that changes the answers by 5 % is refused, also where the model's own noise widens the limits."""
    for offset, damage in ((0.0, 0.001), (300.0, 1.0)):
        whole = canonical_of(source(normalized(offset), tmp_path), samples, prune=True)
        assert whole.steps
        with pytest.raises(ParityError, match=r"step read onnx changed output y by .*; the limit is"):
            canonical_of(source(normalized(offset), tmp_path, normalized(offset, damage)), samples, prune=True)


def test_other_answers_of_an_exporter_are_not_called_a_fault_of_the_converter(tmp_path, samples):
    """PyTorch's exporter to ONNX does so where a program writes into parts of a tensor."""
    one = msgspec.structs.replace(source(normalized(0.0), tmp_path, normalized(0.0, 0.05)), format="pt2")
    with pytest.raises(ParityError, match="step read pt2 changed output y") as caught:
        canonical_of(one, samples, prune=True)
    assert caught.value.advice.startswith("PyTorch's exporter")


def test_ill_conditioned_model_is_converted_and_said_to_be_so(tmp_path):
    """ONNX Runtime itself differs between batch sizes there, so no step is blamed, and the report says why."""
    onnx.save(normalized(300.0), tmp_path / "rough.onnx")
    rows = RNG.normal(0, 1, (400, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "rough.npz", x=rows)
    report = convert(tmp_path / "rough.onnx", targets=["jetson-orin"], data=tmp_path / "rough.npz", output=tmp_path)[0]
    assert any("starts at layer variance" in note for note in report.notes)
    assert report.noise[0].share > 0.1


def test_operators_that_fail_in_float64_only_when_they_run_are_quiet(capfd):
    """ONNX Runtime loads an LSTM in float64 and then cannot run it: the reference does, and nothing is printed."""
    rng = np.random.default_rng(4)
    weights = {"w": rng.normal(0, 0.3, (1, 16, 3)), "r": rng.normal(0, 0.3, (1, 16, 4)), "last": [0]}
    weights = {name: np.asarray(value, np.int64 if name == "last" else np.float32) for name, value in weights.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "end"], hidden_size=4),
        helper.make_node("Squeeze", ["end", "last"], ["y"]),
    ]
    graph = Graph(model_of(nodes, {"x": ["N", 6, 3]}, {"y": ["N", 4]}, weights))
    rows = {"x": rng.normal(0, 1, (5, 6, 3)).astype(np.float32)}
    exact = answers_in_float64(graph, rows)
    assert exact["y"].dtype == np.float64
    np.testing.assert_allclose(exact["y"], graph.run(rows)["y"], atol=1e-6)
    assert capfd.readouterr() == ("", "")


def test_float64_runs_where_onnx_runtime_lacks_an_operator():
    """A convolution has no float64 kernel in ONNX Runtime; the reference runs it, and agrees up to float32 rounding."""
    from tests.simulators.models import classifier, patterns

    graph = canonical(classifier(), "test")
    images = {"image": patterns(3)[0]}
    exact, single = answers_in_float64(graph, images), graph.run(images)
    for name, value in single.items():
        assert exact[name].dtype == np.float64
        assert np.abs(exact[name] - value).max() < 1e-5


def test_layer_of_noise_is_empty_for_a_graph_that_cannot_be_traced(samples):
    """A graph whose intermediate values would take too much memory has no named layer."""
    model = normalized(0.0)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 1 << 22], np.int64), "large"))
    model.graph.node.append(helper.make_node("Expand", ["y", "large"], ["huge"], "expand"))
    assert noisiest_layer(Graph(model), samples.inputs) == ""


def test_rough_fourier_transform_counts_as_noise(tmp_path):
    """ONNX Runtime's transform of 320 values is rough, which a logarithm shows; of 256 values it is exact."""
    found = {}
    for size in (256, 320):
        nodes = [
            helper.make_node("STFT", ["x", "step", "window"], ["s"], "stft", onesided=1),
            helper.make_node("ReduceSumSquare", ["s"], ["power"], "power", axes=[-1], keepdims=0),
            helper.make_node("Log", ["power"], ["y"], "log"),
        ]
        held = {"step": np.int64(size // 2), "window": np.hanning(size).astype(np.float32)}
        model = model_of(nodes, {"x": ["n", 1600]}, {"y": ["n", "frames", size // 2 + 1]}, held)
        samples = Samples({"x": np.random.default_rng(2).normal(0, 1, (4, 1600)).astype(np.float32)})
        read = source(model, tmp_path)
        found[size] = float(noise_of(read, samples, read.answers(samples.inputs)).by_output["y"].max())
    assert found[320] > 20 * found[256]


def test_limit_is_never_below_the_rounding_of_the_answers():
    """Answers of 0.25 that differ by 1e-5 only: float32 holds them to 1e-8, so a change of 3e-8 is no fault."""
    answers = (0.25 + 1e-5 * np.random.default_rng(0).normal(size=(30, 4))).astype(np.float32)
    [limit] = tolerances({"y": answers}, FLOAT32_RELATIVE).values()
    assert 3e-8 < float(limit.max()) < 2e-7


def test_rounding_of_answers_with_an_offset_is_no_ill_condition(tmp_path):
    """Answers near 0.25 that hardly vary differ by the last bit with the batch size, as every float does."""
    weights = {"w": np.random.default_rng(2).normal(0, 1e-5, (WIDTH, 4)).astype(np.float32), "offset": np.float32(0.25)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["small"]), helper.make_node("Add", ["small", "offset"], ["y"])]
    model = model_of(nodes, {"x": ["n", WIDTH]}, {"y": ["n", 4]}, weights)
    graph = canonical(model, "test")
    inputs = Samples({"x": RNG.normal(0, 1, (40, WIDTH)).astype(np.float32)})

    def answers(inputs):
        """The graph's answers, whose last bit depends on the batch size."""
        found = graph.run(inputs)["y"]
        return {"y": np.nextafter(found, np.float32(1)) if len(found) == 1 else found}

    one = Source(tmp_path / "m.onnx", "onnx", "0" * 64, graph, answers)
    noise = noise_of(one, inputs, one.answers(inputs.inputs))
    assert noise.outputs[0].noise > 0
    assert not noise.ill_conditioned


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_source_with_infinite_answers_is_refused_with_what_to_do(tmp_path, samples):
    """A mask of -inf on a score is in every answer; no step is blamed for it."""
    weights = {"w": np.eye(WIDTH, dtype=np.float32), "mask": np.array([0] * (WIDTH - 1) + [-np.inf], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Add", ["scores", "mask"], ["y"])]
    masked = source(model_of(nodes, {"x": ["n", WIDTH]}, {"y": ["n", WIDTH]}, weights), tmp_path)
    with pytest.raises(ConversionError, match=r"own answers .* infinity in output y") as caught:
        canonical_of(masked, samples, prune=False)
    assert "--cut" in caught.value.advice


def peaks(gain=1.0, halves=False):
    """A heat map whose values stay where they are the largest around; with `halves`, it sums in another order."""
    weights = np.random.default_rng(3).normal(0, 0.3, (8, 4, 3, 3)).astype(np.float32)
    constants = {
        "weights": weights,
        "gain": np.float32(gain),
    }
    make = helper.make_node
    nodes = [
        *(
            [
                make("Split", ["x"], ["x_a", "x_b"], "split", axis=1, num_outputs=2),
                make("Split", ["weights"], ["w_a", "w_b"], "split_weights", axis=1, num_outputs=2),
                make("Conv", ["x_a", "w_a"], ["a"], "conv_a", pads=[1, 1, 1, 1]),
                make("Conv", ["x_b", "w_b"], ["b"], "conv_b", pads=[1, 1, 1, 1]),
                make("Add", ["a", "b"], ["conv"], "add"),
            ]
            if halves
            else [make("Conv", ["x", "weights"], ["conv"], "conv", pads=[1, 1, 1, 1])]
        ),
        make("MaxPool", ["conv"], ["pooled"], "pool", kernel_shape=[17, 17], pads=[8, 8, 8, 8]),
        make("Equal", ["pooled", "conv"], ["peak"], "equal"),
        make("Cast", ["peak"], ["mask"], "cast", to=TensorProto.FLOAT),
        make("Mul", ["conv", "mask"], ["kept"], "kept"),
        make("Mul", ["kept", "gain"], ["y"], "gain"),
    ]
    graph = helper.make_graph(
        nodes,
        "peaks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_peaks_of_nearly_equal_values_are_no_fault_of_a_step_and_a_fault_of_their_size_is(tmp_path):
    """Two peaks whose order rounding decides may change places; a change of all peaks by 0.1 % is a fault."""
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 1, (12, 4, 16, 16)).astype(np.float32)
    plain = Samples({"x": rows.copy()})
    rows[6:, :, 8:] = rows[6:, :, :8] * (1 + rng.uniform(-2e-7, 2e-7, (6, 4, 8, 16)))  # all is there nearly twice
    samples = Samples({"x": rows})
    jumping = source(peaks(), tmp_path, peaks(halves=True))
    expected = jumping.answers(samples.inputs)["y"]
    assert np.abs(jumping.graph.run(samples.inputs)["y"] - expected).max() > 0.1
    assert canonical_of(jumping, samples, prune=True).steps
    with pytest.raises(ParityError, match="step read onnx changed output y"):
        canonical_of(source(peaks(), tmp_path, peaks(1.001)), plain, prune=True)

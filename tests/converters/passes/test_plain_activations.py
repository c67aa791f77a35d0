"""Activations that an accelerator lacks become operators that it has."""

import numpy as np
import pytest
from onnx import helper

from converters.backends.accelerators import accelerators, faults
from converters.backends.tflite.reader import operators_of
from converters.graph.graph import Graph
from converters.passes import run_pass
from converters.passes.plain_activations import PlainActivations
from tests.converters.lowering.lowered import lowered
from tests.simulators import models

RNG = np.random.default_rng(6)


def activations():
    """Convolutions, a leaky rectifier, a hard swish, a rectifier with a slope for each channel, and a negation."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("LeakyRelu", ["c"], ["l"], name="leaky", alpha=0.1),
        helper.make_node("Conv", ["l", "v"], ["d"], name="conv2"),
        helper.make_node("HardSwish", ["d"], ["h"], name="swish"),
        helper.make_node("PRelu", ["h", "s"], ["p"], name="prelu"),
        helper.make_node("Neg", ["p"], ["y"], name="minus"),
    ]
    constants = {
        "w": RNG.normal(0, 1, (6, 3, 1, 1)).astype(np.float32),
        "s": RNG.uniform(0, 1, (4, 1, 1)).astype(np.float32),
        "v": RNG.normal(0, 1, (4, 6, 1, 1)).astype(np.float32),
    }
    return models.model_of(nodes, {"x": ["batch", 3, 5, 5]}, {"y": ["batch", 4, 5, 5]}, constants)


def test_activations_are_written_with_the_same_answers():
    """All are replaced for an Edge TPU. The Ethos-U has all, and keeps the one that the quantizer makes integers of."""
    graph = Graph(activations())
    result = run_pass(PlainActivations(accelerators()["edgetpu"].operators), graph)
    assert result.modified
    assert not {"LeakyRelu", "HardSwish", "Neg", "PRelu"} & {node.op_type for node in result.graph.nodes}
    x = {"x": RNG.normal(0, 2, (3, 3, 5, 5)).astype(np.float32)}
    np.testing.assert_allclose(result.graph.run(x)["y"], graph.run(x)["y"], atol=1e-5)
    ethos = run_pass(PlainActivations(accelerators()["ethos-u55"].operators), graph).graph
    assert {"LeakyRelu", "HardSwish", "Neg", "PRelu"} & {node.op_type for node in ethos.nodes} == {"HardSwish"}


@pytest.mark.heavy
def test_converter_does_not_make_the_missing_operators_again(child, tmp_path):
    """TensorFlow's converter joins products and rectifiers to the operators that the Edge TPU lacks."""
    edge = accelerators()["edgetpu"]
    plain = run_pass(PlainActivations(edge.operators), Graph(activations())).graph
    lowered(child, tmp_path, plain.model)
    assert not faults((tmp_path / "m.tflite").read_bytes(), edge, quantized=False)


@pytest.mark.heavy
def test_a_rectifier_with_a_slope_for_each_channel_is_one_operator(child, tmp_path):
    """TensorFlow's converter sees it only where the slope has no axis for the batch; else five operators run."""
    node = helper.make_node("PRelu", ["x", "s"], ["y"], name="prelu")
    slope = {"s": RNG.uniform(0, 1, (3, 1, 1)).astype(np.float32)}
    lowered(child, tmp_path, models.model_of([node], {"x": ["batch", 3, 5, 5]}, {"y": ["batch", 3, 5, 5]}, slope))
    assert "PRELU" in operators_of((tmp_path / "m.tflite").read_bytes())

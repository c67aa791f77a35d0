"""The trainable view of graphs, and training it."""

import numpy as np
import pytest

from converters.passes.channels.rules import channels_of
from converters.passes.weights import with_constants
from converters.pruning.teaching import taught
from converters.training.schedule import Lesson, Schedule, rate_at
from tests.simulators.pruning_models import STRUCTURES

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("name", STRUCTURES)
def test_trainable_view_answers_as_the_graph(name):
    """Every structure answers as in ONNX Runtime, with any number of rows, and each weight has a gradient."""
    from converters.training.module import TrainableGraph

    net, output = STRUCTURES[name]()
    graph, x = net.graph(output), net.x(5)
    module = TrainableGraph(graph)
    expected = graph.run({"x": x})[output]
    np.testing.assert_allclose(module(x)[output], expected, atol=1e-4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(module({"x": x[:3]})[output]))
    gradients = tape.gradient(loss, module.trainable_variables)
    assert module.trainable_variables
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


def test_fixed_batch_runs_row_by_row():
    """A graph with a batch of 1 answers several rows."""
    from converters.training.module import TrainableGraph

    net, output = STRUCTURES["plain"]()
    graph, x = net.graph(output), net.x(3)
    found = TrainableGraph(graph.with_batch(1))(x)[output]
    np.testing.assert_allclose(found, graph.run({"x": x})[output], atol=1e-4)


def _noisy(graph, scale):
    rng = np.random.default_rng(0)
    return with_constants(
        graph,
        {
            name: (value + scale * value.std() * rng.normal(size=value.shape)).astype(np.float32)
            for name, value in graph.constants.items()
            if value.dtype == np.float32 and value.size > 4
        },
    )


@pytest.mark.parametrize("bright", [1.0, 255.0])
def test_distilled_weights_come_back_to_the_original(bright):
    """Training lowers the distance, the same each time, also where inputs reach 255 and first weights are tiny."""
    from converters.training.distill import distill

    net, output = STRUCTURES["residual"]()
    graph, x = net.graph(output), net.x(64)
    first = graph.nodes[0].input[1]
    graph = with_constants(graph, {first: graph.constants[first] / np.float32(bright)})
    x, noisy = x * np.float32(bright), _noisy(graph, 0.3)
    lesson = Lesson({"x": x}, graph.run({"x": x}), {})
    made = [distill(noisy.to_bytes(), lesson, Schedule(60, 16, 0.01, seed=5)) for _ in range(2)]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])

    def distance(one):
        return float(np.mean((one.run({"x": x})[output] - lesson.answers[output]) ** 2))

    assert distance(with_constants(noisy, made[0])) < 0.5 * distance(noisy)


@pytest.mark.parametrize("name", ["flat attention", "words first"])
def test_attention_is_distilled_however_its_layers_hold_rows(name):
    """Layers over rows times words, and layers with the words first, are trained towards the original."""
    from converters.training.distill import distill

    net, output = STRUCTURES[name]()
    graph, x = net.graph(output), net.x(40)
    noisy, channels = _noisy(graph, 0.3), channels_of(graph)
    answers, layers = taught(channels, np.zeros(len(channels.roots), dtype=bool), graph, {"x": x})
    made = distill(noisy.to_bytes(), Lesson({"x": x}, answers, layers), Schedule(30, 16, 0.01, seed=5))
    before, after = (one.run({"x": x})[output] for one in (noisy, with_constants(noisy, made)))
    assert np.mean((after - answers[output]) ** 2) < 0.5 * np.mean((before - answers[output]) ** 2)


def test_labels_pull_towards_them():
    """With labels, the labelled class gets more probable than by distillation alone."""
    from converters.training.distill import distill

    net, output = STRUCTURES["plain"]()
    graph, x = net.graph(output), net.x(32)
    answers, labels = graph.run({"x": x}), np.zeros(32, np.int64)
    chances = []
    for given in (None, labels):
        lesson = Lesson({"x": x}, answers, {}, output, logits=True, labels=given)
        scores = with_constants(graph, distill(graph.to_bytes(), lesson, Schedule(20, 16, 0.01, 0))).run({"x": x})
        chances.append(np.mean(scores[output][:, 0] - scores[output][:, 1]))
    assert chances[1] > chances[0]


def test_rate_rises_and_falls_to_zero():
    """The rate is highest after the first steps and near 0 at the end."""
    rates = [rate_at(number, Schedule(100, 16, 0.01, 0)) for number in range(100)]
    assert np.argmax(rates) == 4
    assert rates[0] < 0.25 * max(rates)
    assert rates[-1] < 1e-4

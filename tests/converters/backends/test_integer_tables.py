import numpy as np
import onnx

from converters.backends.onnx_cpu import unfit
from converters.backends.onnx_weights import integer_tables
from converters.graph.graph import Graph
from tests.simulators import models

node = models.helper.make_node
RNG = np.random.default_rng(3)


def test_rows_of_a_table_are_integers_with_a_scale_of_their_own():
    """Two readers share the table; rows of very different size are both within half a step; the file is smaller."""
    table = (RNG.normal(0, 1, (512, 32)) * 10.0 ** RNG.integers(-3, 3, (512, 1))).astype(np.float32)
    nodes = [
        node("Gather", ["table", "x"], ["a"], name="words"),
        node("Gather", ["table", "z"], ["b"], name="more"),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    model = models.model_of(nodes, {"x": ["batch", 5], "z": ["batch", 5]}, {"y": ["batch", 10, 32]}, {"table": table})
    for value in model.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    graph = Graph(model)
    made = integer_tables(graph)
    x = {name: RNG.integers(0, 512, (4, 5)) for name in "xz"}
    answers, expected = made.run(x)["y"], graph.run(x)["y"]
    rows = np.abs(table).max(axis=1)[np.concatenate([x["x"], x["z"]], axis=1)]
    assert (np.abs(answers - expected).max(axis=-1) <= rows / 127 * 0.51).all()
    assert len(made.to_bytes()) < 0.4 * len(graph.to_bytes())
    assert "table" not in made.constants


def test_small_tables_and_other_gathers_stay():
    """A table of a few rows, and a Gather of columns, are left as they are."""
    nodes = [
        node("Gather", ["few", "i"], ["a"], name="small"),
        node("Gather", ["x", "i"], ["b"], axis=1, name="columns"),
        node("Add", ["a", "b"], ["y"]),
    ]
    constants = {"few": np.ones((8, 4), np.float32), "i": np.array([1, 2, 3, 0])}
    graph = Graph(models.model_of(nodes, {"x": ["batch", 4, 4]}, {"y": ["batch", 4, 4]}, constants))
    assert integer_tables(graph) is graph


def test_sums_that_only_float_operators_read_stay_float():
    """A residual before a normalization gains nothing from 8 bits; one before a layer does."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="first"),
        node("Add", ["m", "x"], ["r"], name="residual"),
        node("LayerNormalization", ["r", "g"], ["n"], name="norm"),
        node("MatMul", ["n", "w"], ["p"], name="second"),
        node("Add", ["p", "m"], ["s"], name="between"),
        node("MatMul", ["s", "w"], ["y"], name="third"),
    ]
    constants = {"w": np.eye(4, dtype=np.float32), "g": np.ones(4, np.float32)}
    graph = Graph(models.model_of(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, constants))
    assert unfit(graph) == {"residual"}

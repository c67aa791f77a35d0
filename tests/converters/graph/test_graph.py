import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.frontends.onnx import canonical, onnx_answers
from converters.graph import graph as graph_module
from converters.graph.graph import Graph
from converters.passes import CANONICAL_PASSES, FoldBatchNorm, Simplify, run_pass
from edgekit.errors import ConversionError
from tests.simulators import models


def graph(**options):
    return canonical(models.classifier(**options), "test")


def test_interface_keeps_names_and_frees_the_batch():
    """The canonical graph has the source's names and layout, and a batch called batch."""
    found = graph(batch="unk__432")
    assert found.inputs[0].name == "image"
    assert found.inputs[0].shape == (None, 1, 8, 8)
    assert found.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_fixed_batch_of_one_is_free_for_clients():
    """A source with a batch of 1 keeps it in the graph, while its logical tensors are free."""
    found = graph(batch=1)
    assert found.inputs[0].shape[0] == 1
    assert found.logical_inputs[0].shape[0] is None


def test_batch_one_graph_runs_many_rows():
    """Rows are run one by one where the graph takes only one."""
    x = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    one, free = graph(batch=1).run({"image": x}), graph().run({"image": x})
    np.testing.assert_allclose(one["scores"], free["scores"], atol=1e-6)


def test_older_opset_is_raised_to_17():
    """An opset 13 model becomes canonical with the same answers."""
    old = models.classifier()
    old.opset_import[0].version = 13
    found = canonical(old, "test")
    assert found.opset == 17


def test_newer_opset_and_file_format_come_back_to_what_runtimes_read(tmp_path):
    """A model of the newest operator set and IR that onnx writes answers as before, in opset 23."""
    new = models.classifier()
    new.opset_import[0].version, new.ir_version = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    found, path = canonical(new, "test"), models.saved(new, tmp_path / "new.onnx")
    x = {"image": models.patterns(4)[0]}
    assert found.opset == 23
    np.testing.assert_allclose(found.run(x)["scores"], graph().run(x)["scores"], atol=1e-6)
    np.testing.assert_allclose(onnx_answers(path, x, graph=found)["scores"], found.run(x)["scores"], atol=1e-6)


def test_answers_are_those_of_the_file_and_not_of_what_was_made_of_it(tmp_path):
    """Answers come from the source file, so a fault in the conversion to the canonical operator set is found."""
    old = models.classifier()
    path = models.saved(old, tmp_path / "m.onnx")
    for tensor in old.graph.initializer:
        if tensor.name == "dense":
            tensor.CopyFrom(models.numpy_helper.from_array(np.zeros((6, 3), np.float32), "dense"))
    x = {"image": models.patterns(4)[0]}
    assert not np.allclose(
        onnx_answers(path, x, graph=canonical(old, "test"))["scores"], canonical(old, "test").run(x)["scores"]
    )


def test_nodes_get_names_of_their_own():
    """Nodes without a name, or with a duplicate name, get a unique name."""
    model = models.classifier()
    model.graph.node[0].name = ""
    model.graph.node[2].name = model.graph.node[3].name
    names = [node.name for node in canonical(model, "test").nodes]
    assert all(names)
    assert len(set(names)) == len(names)


def test_multiply_adds_are_counted_per_layer():
    """A 3x3 convolution from 1 to 6 channels over 8x8, and a dense layer 6 to 3."""
    macs = graph().macs
    assert macs["c"] == 8 * 8 * 6 * 9
    assert macs["logits"] == 6 * 3


def test_fold_batch_norm_keeps_the_answers():
    """The normalization is removed and the answers stay equal."""
    before = graph()
    result = run_pass(FoldBatchNorm(), before)
    assert result.modified
    assert "BatchNormalization" not in result.graph.operators
    assert "BatchNormalization" in before.operators
    x = np.random.default_rng(1).random((4, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(result.graph.run({"image": x})["scores"], before.run({"image": x})["scores"], atol=1e-5)


def test_fold_batch_norm_leaves_a_shared_convolution_alone():
    """A normalization is not folded into a convolution that has other readers."""
    model = models.classifier()
    model.graph.node.append(helper.make_node("Relu", ["c"], ["also"], name="also"))
    model.graph.output.append(helper.make_tensor_value_info("also", 1, ["batch", 6, 8, 8]))
    result = run_pass(FoldBatchNorm(), canonical(model, "test"))
    assert not result.modified
    assert "BatchNormalization" in result.graph.operators


def test_every_pass_is_honest_about_doing_nothing():
    """In a second run, no pass reports a change."""
    found = graph()
    for step in CANONICAL_PASSES:
        found = run_pass(step, found).graph
    assert [run_pass(step, found).modified for step in CANONICAL_PASSES] == [False] * len(CANONICAL_PASSES)


class Renames(Simplify):
    name = "renames"

    def run(self, graph):
        model = models.classifier()
        model.graph.output[0].name = "other"
        model.graph.node[-1].output[0] = "other"
        return Graph(model)


def test_a_pass_that_changes_the_interface_is_stopped():
    """The contract catches a pass that renames an output."""
    with pytest.raises(ConversionError, match="renames changed the interface"):
        run_pass(Renames(), graph())


def test_rows_at_once_fit_into_memory(monkeypatch):
    """Large tensors are run in fewer rows; a graph with a fixed batch takes one."""
    graph = wide_graph()
    assert graph.rows_at_once() == 64
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 5 * graph.live_bytes)
    assert graph.rows_at_once() == 5
    assert graph.rows_at_once(3) == 3
    assert graph.rows_at_once(kept=["h"] * 8) < 5
    assert graph.with_batch(1).rows_at_once() == 1
    x = np.random.default_rng(0).normal(size=(13, 4)).astype(np.float32)
    np.testing.assert_allclose(graph.run({"x": x})["y"], np.maximum(x, 0) * 2, rtol=1e-6)


def wide_graph():
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Add", ["h", "h"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    made = helper.make_graph(nodes, "wide", values[:1], values[1:])
    return Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def test_a_compact_graph_computes_the_same():
    """The copy has the same bytes, and is another message."""
    graph = wide_graph()
    compact = graph.compact()
    assert compact.to_bytes() == graph.to_bytes()
    assert compact.model is not graph.model


def test_layers_in_the_body_of_a_scan_count_at_each_step():
    """Ten steps of two dense layers; a Loop of unknown length counts once, and never as nothing."""
    value, make = helper.make_tensor_value_info, helper.make_node
    body = helper.make_graph(
        [
            make("MatMul", ["step", "w"], ["p"]),
            make("MatMul", ["state", "r"], ["q"]),
            make("Add", ["p", "q"], ["next"]),
            make("Identity", ["next"], ["out"]),
        ],
        "body",
        [value("state", TensorProto.FLOAT, None), value("step", TensorProto.FLOAT, None)],
        [value("next", TensorProto.FLOAT, None), value("out", TensorProto.FLOAT, None)],
    )
    loop = helper.make_graph(
        [make("MatMul", ["s", "r"], ["t"]), make("Identity", ["go"], ["on"])],
        "loop",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("t", TensorProto.FLOAT, None)],
    )
    nodes = [
        make("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        make("Scan", ["start", "turned"], ["last", "all"], body=body, num_scan_inputs=1),
        make("ReduceSum", ["x"], ["sum"], keepdims=0),
        make("Cast", ["sum"], ["count"], to=TensorProto.INT64),
        make("Loop", ["count", "yes", "last"], ["y"], body=loop),
    ]
    constants = {
        "w": np.zeros((8, 4), np.float32),
        "r": np.zeros((4, 4), np.float32),
        "start": np.zeros((1, 4), np.float32),
        "yes": np.array(True),
    }
    graph = helper.make_graph(
        nodes,
        "loops",
        [value("x", TensorProto.FLOAT, [1, 10, 8])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert made.macs == {"last": 10 * (8 * 4 + 4 * 4), "y": 4 * 4}

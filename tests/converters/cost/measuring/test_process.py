"""The process that is measured, on this machine, with real runtimes and small models."""

import contextlib
import mmap
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.cost.measuring import subject
from converters.cost.measuring.counters import kernel_counter
from converters.cost.measuring.layers import LayersError
from converters.cost.measuring.layers import _nodes as nodes
from converters.cost.measuring.messages import Layer
from converters.cost.measuring.process import HOST, Measuring
from converters.cost.measuring.subject import without_profiler
from edgekit.errors import RuntimeLoadError
from edgekit.runtimes.model_memory import ModelMemory
from tests.simulators.small_models import litert_model, onnx_model

X = {"x": np.ones((1, 3), np.float32)}


@pytest.fixture(scope="module")
def measuring():
    with Measuring(HOST) as measuring:
        yield measuring


@pytest.mark.parametrize(("runtime", "name"), [("litert", "m.tflite"), ("onnxruntime", "m.onnx")])
def test_both_runtimes_are_measured(measuring, tmp_path, runtime, name):
    """Times ascend, and instructions are counted, or the outcome says why not."""
    path = tmp_path / name
    path.write_bytes(litert_model() if runtime == "litert" else onnx_model(batch=1))
    outcome = measuring.measure(path, runtime, X, seconds=0.02)
    assert len(outcome.milliseconds) >= 20
    assert list(outcome.milliseconds) == sorted(outcome.milliseconds)
    assert outcome.memory_bytes >= 0
    assert "numpy" in outcome.versions
    if outcome.instructions is None:
        assert outcome.not_counted.startswith("not counted: ")
    else:
        assert outcome.instructions > 100


def test_inputs_of_any_name_are_measured(measuring, tmp_path):
    """An input may be called as an argument of numpy is."""
    names = ["file", "args", "allow_pickle"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in [*names, "y"]]
    graph = helper.make_graph([helper.make_node("Sum", names, ["y"])], "named", ends[:-1], ends[-1:])
    path = tmp_path / "named.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    outcome = measuring.measure(path, "onnxruntime", dict.fromkeys(names, X["x"]), seconds=0.01)
    assert outcome.milliseconds


def test_more_weights_need_more_memory(measuring, tmp_path):
    """The memory is the model's: 8 MB of weights are seen."""
    rng = np.random.default_rng(0)
    path = tmp_path / "large.onnx"
    path.write_bytes(_large(rng.normal(size=(1024, 2048)).astype(np.float32)))
    outcome = measuring.measure(path, "onnxruntime", {"x": np.ones((1, 1024), np.float32)})
    assert 8e6 < outcome.memory_bytes < 60e6


def _large(weights):
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2048]),
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_a_damaged_model_is_an_error_and_the_next_one_is_measured(measuring, tmp_path):
    """The runtime's message reaches the caller, and the process goes on."""
    bad, good = tmp_path / "bad.onnx", tmp_path / "good.onnx"
    bad.write_bytes(b"nothing")
    good.write_bytes(onnx_model(batch=1))
    with pytest.raises(RuntimeLoadError, match=r"bad\.onnx"):
        measuring.measure(bad, "onnxruntime", X)
    assert measuring.measure(good, "onnxruntime", X).runs >= 0


def test_a_process_that_dies_is_named_and_started_again(tmp_path):
    """A crash of a runtime is an error of this artifact only."""
    path = tmp_path / "good.onnx"
    path.write_bytes(onnx_model(batch=1))
    with Measuring(HOST) as measuring:
        measuring.measure(path, "onnxruntime", X)
        assert measuring._process is not None
        os.kill(measuring._process.pid, signal.SIGSEGV)
        measuring._process.wait()
        with pytest.raises(RuntimeLoadError, match="ended its process on host with signal SIGSEGV"):
            measuring.measure(path, "onnxruntime", X)
        measuring.measure(path, "onnxruntime", X)


def test_a_model_without_an_end_is_ended_at_the_limit(tmp_path):
    """Its loop has 2^62 rounds; the next model is measured in a new process."""
    endless, good = tmp_path / "endless.onnx", tmp_path / "good.onnx"
    endless.write_bytes(_endless())
    good.write_bytes(onnx_model(batch=1))
    with Measuring(HOST, limit_seconds=15.0) as measuring:
        with pytest.raises(RuntimeLoadError, match=r"endless\.onnx on host was not measured within 15 s"):
            measuring.measure(endless, "onnxruntime", X)
        assert measuring.measure(good, "onnxruntime", X).runs >= 0


def _endless():
    """Adds x to y once in each of 2^62 rounds."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Add", ["sum", "x"], ["more"]),
        ],
        "body",
        [value("round", TensorProto.INT64, []), value("going", TensorProto.BOOL, []), value("sum", 1, [1, 3])],
        [value("goes", TensorProto.BOOL, []), value("more", 1, [1, 3])],
    )
    rounds = helper.make_node("Constant", [], ["rounds"], value_int=2**62)
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)
    graph = helper.make_graph([rounds, loop], "endless", [value("x", 1, [1, 3])], [value("y", 1, [1, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_the_kernel_counts_or_says_why_not():
    """A virtual machine often has no counter; where there is one, it rises."""
    counter = kernel_counter()
    if isinstance(counter, str):
        assert counter.startswith("not counted: ")
    else:
        assert counter() < counter()


@pytest.mark.parametrize("mappings", [0, 20_000])
def test_memory_is_that_of_pages_that_were_touched(tmp_path, mappings):
    """16 MB of written pages are seen at their peak, after they were freed too, also in a process of many mappings."""
    with contextlib.ExitStack() as stack:
        for _ in range(mappings):  # shared ones of one page each: private ones would be merged
            stack.enter_context(mmap.mmap(-1, 4096))
        memory = ModelMemory(tmp_path / "model", emulated=False)
        with mmap.mmap(-1, 1 << 24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # an array may reuse pages
            for start in range(0, len(pages), 4096):  # one large write needs as much memory again
                pages[start] = 1
        assert 14e6 < memory.peak() < 20e6


@pytest.mark.parametrize(("cost", "disturbed"), [(1000, (3,)), (1000, (4, 9)), (50_000_000, (1, 2))])
def test_other_work_between_the_runs_is_not_counted(cost, disturbed):
    """A library that now and then does a million instructions of other work does not change the count of a run."""
    done, calls = 0, 0

    def call():
        nonlocal done, calls
        calls += 1
        done += cost + (1_000_000 if calls in disturbed else 0)

    assert subject._count(call, lambda: done).instructions == cost


def test_the_profilers_own_work_is_taken_off_each_node():
    """ONNX Runtime writes its profile within the nodes' time; the sum of the nodes is then that of a plain run."""
    layers = [Layer("a", "Conv", 1_020_000), Layer("b", "Relu", 60_000), Layer("c", "Gemm", 220_000)]
    assert [layer.instructions for layer in without_profiler(layers, 1_240_000.0)] == [1_000_000, 40_000, 200_000]
    assert [layer.instructions for layer in without_profiler(layers, 100.0)] == [960_000, 0, 160_000]


def test_only_the_last_run_of_a_profile_counts():
    """The first runs are slower; a profile without runs is an error."""
    events = [
        {"cat": "Node", "name": "a_kernel_time", "dur": 9, "args": {"op_name": "Conv"}},
        {"cat": "Session", "name": "model_run", "dur": 10},
        {"cat": "Node", "name": "a_fence_before", "dur": 0, "args": {"op_name": "Conv"}},
        {"cat": "Node", "name": "a_kernel_time", "dur": 5, "args": {"op_name": "Conv"}},
        {"cat": "Session", "name": "model_run", "dur": 6},
    ]
    assert list(nodes(events)) == [Layer("a", "Conv", 5)]
    with pytest.raises(LayersError):
        list(nodes(events[:2]))

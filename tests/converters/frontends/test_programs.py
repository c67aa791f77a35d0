"""Programs of torch.export. Tests that need PyTorch run only if it is installed."""

import importlib.util
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from converters.frontends import load_model, sniff
from converters.frontends.torch.program_check import write_checked
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.errors import ConversionError, MissingExtraError, ModelFormatError, UnsupportedOpError
from edgekit.runtimes import open_runtime
from edgekit.tensors import DType

with_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None,
    reason="PyTorch and onnxscript are not installed: run `make torch`",
)

PROGRAMS = """
import sys, torch
from torch import nn
from torch.export import Dim, export, save
folder = sys.argv[1]
torch.manual_seed(3)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, image):
        return self.head(self.features(image).mean((2, 3))).softmax(-1)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, left, right):
        x = self.norm(nn.functional.gelu(self.lift(left)) + right)
        return x.mean(1), self.attend(x, x, x)[0]

class Training(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, True)

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, given, scale):
        return {"scores": self.head(given["a"]) * scale, "sum": given["a"] + given["b"]}

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen.add_(1)
        return x + self.seen

class Branch(nn.Module):
    def __init__(self, decides):
        super().__init__()
        self.decides = decides
        self.register_buffer("flag", torch.tensor(True))

    def forward(self, x):
        by = {"values": x.sum() > 0, "buffer": self.flag, "size": x.shape[0] > 2}[self.decides]
        return torch.cond(by, lambda x: x * 2, lambda x: x - 1, (x,))

class Loop(nn.Module):
    def forward(self, x):
        body = lambda x: (x * 2,)
        return torch._higher_order_ops.while_loop(lambda x: x.sum() < 9, body, (x,))[0]

class Above(nn.Module):
    def forward(self, x):
        return torch.nonzero(x > 0)

class Attending(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

class Writing(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 0] = x[:, 1]
        y[:, 2:4] = 0.5
        y[..., -1] = 3.0
        y[y > 2.5] = 1.0
        z = torch.zeros(x.shape[0], 5, 6)
        z[:, :, 2:] = y
        z[:, 1] = z[:, 1] - 1
        return z

class Scaled(nn.Module):
    def forward(self, x, temperature):
        return x / temperature

rows = {0: Dim("rows", min=1, max=6)}
net, two = Net().eval(), Two().eval()
image, left, right = torch.rand(2, 1, 8, 8), torch.rand(2, 5, 4), torch.rand(2, 5, 8)
save(export(net, (image,), dynamic_shapes=(rows,)), folder + "/net.pt2")
save(export(net, (image[:1].clone(),)), folder + "/fixed.pt2")
save(export(net, (image,)), folder + "/two_rows.pt2")
save(export(two, (left, right), dynamic_shapes=(rows, rows)), folder + "/two.pt2")
save(export(Training(), (left,)), folder + "/training.pt2")
given = {"a": torch.rand(2, 4), "b": torch.rand(2, 4)}
save(export(Named().eval(), (given, 2.0), dynamic_shapes=({"a": rows, "b": rows}, None)), folder + "/named.pt2")
for kind in (torch.float16, torch.bfloat16, torch.float64):
    other = Net().eval().to(kind)
    save(export(other, (image.to(kind),), dynamic_shapes=(rows,)), f"{folder}/{str(kind).split('.')[1]}.pt2")
save(export(Counting(), (left,)), folder + "/counting.pt2")
for decides in ("values", "buffer", "size"):
    free = {0: Dim("rows", min=1, max=6)}
    save(export(Branch(decides), (left,), dynamic_shapes=(free,)), f"{folder}/by_{decides}.pt2")
save(export(Loop(), (left,)), folder + "/loop.pt2")
save(export(Above(), (torch.rand(1, 8),)), folder + "/above.pt2")
save(export(Attending(), (left,), dynamic_shapes=(rows,)), folder + "/attending.pt2")
save(export(Scaled(), (left, torch.tensor(2.0)), dynamic_shapes=(rows, None)), folder + "/scaled.pt2")
save(export(Writing(), (left,), dynamic_shapes=(rows,)), folder + "/writing.pt2")
torch.onnx.export(Writing(), (left,), folder + "/writing.onnx", dynamo=True, dynamic_shapes=(rows,), verbose=False)
torch.save(net, folder + "/whole.pt")
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Programs made by PyTorch in another process, so that this process does not import it."""
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run([sys.executable, "-c", PROGRAMS, str(folder)], check=True, capture_output=True)
    return folder


def archive(path, *, change=None, size="Symbol('s0', positive=True)", spec="builtins.tuple", pickled=False, more=()):
    """An archive in the layout of torch.export.save, with one operator and one weight."""
    node = {
        "target": "torch.ops.aten.relu.default",
        "inputs": [],
        "name": "r",
        "metadata": {"secret": 1},
        **(change or {}),
    }
    entry = json.dumps([1, {"type": spec, "context": "null", "children_spec": []}])
    specs = {"in_spec": entry, "out_spec": entry}
    program = {
        "guards_code": ["__import__('os').abort()"],
        "range_constraints": {"s0": {}},
        "graph_module": {
            "graph": {"nodes": [node]},
            "sizes": [{"expr_str": size}],
            **specs,
        },
    }
    weights = {"config": {"w": {"path_name": "weight_0", "use_pickle": pickled}}}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/models/model.json", json.dumps(program))
        file.writestr("m/data/weights/model_weights_config.json", json.dumps(weights))
        file.writestr("m/data/weights/weight_0", b"\0" * 8)
        file.writestr("m/data/sample_inputs/model.pt", pickle.dumps({}))
        for name, data in more:
            file.writestr(name, data)
    return path


def test_what_pytorch_would_run_or_unpickle_is_left_out(tmp_path):
    """The copy has weights and graph, but no sample inputs, Python checks or unknown metadata."""
    write_checked(archive(tmp_path / "m.pt2"), tmp_path / "c.pt2")
    with zipfile.ZipFile(tmp_path / "c.pt2") as copy:
        program = json.loads(copy.read("program/models/model.json"))
        assert copy.read("program/data/sample_inputs/model.pt") == b""
        assert copy.read("program/data/weights/weight_0") == b"\0" * 8
    assert program["guards_code"] == []
    assert program["graph_module"]["graph"]["nodes"][0]["metadata"] == {}


@pytest.mark.parametrize(
    "size", ["__import__('os').abort()", "(lambda: 1)()", "s0.__class__", "[1][0]", "f'{1}'", "x" * 20_000, "open('x')"]
)
def test_size_that_is_code_is_refused(tmp_path, size):
    """PyTorch evaluates sizes as Python, so only arithmetic of named sizes is accepted."""
    with pytest.raises(ModelFormatError, match=r"expected arithmetic|damaged"):
        write_checked(archive(tmp_path / "m.pt2", size=size), tmp_path / "c.pt2")


@pytest.mark.parametrize("target", ["torch.load", "torch.ops.load_library", "os.system", "torch.ops.mine.op.default"])
def test_target_that_is_no_operator_is_named(tmp_path, target):
    """PyTorch resolves any dotted name, so only its own operators are accepted; the error names the node."""
    with pytest.raises(UnsupportedOpError) as caught:
        write_checked(archive(tmp_path / "m.pt2", change={"target": target, "name": "bad"}), tmp_path / "c.pt2")
    assert (caught.value.op, caught.value.layer) == (target, "bad")


@pytest.mark.parametrize(
    "options",
    [
        {"pickled": True},
        {"more": [("m/data/constants/custom_obj_0", b"x")]},
        {"more": [("m/data/weights/weight_0.pkl", b"x")]},
    ],
)
def test_pickle_in_a_program_is_refused(tmp_path, options):
    """A weight or constant that PyTorch would unpickle is refused."""
    with pytest.raises(ModelFormatError, match="pickle"):
        write_checked(archive(tmp_path / "m.pt2", **options), tmp_path / "c.pt2")


def test_container_of_a_users_class_is_refused(tmp_path):
    """PyTorch imports containers by name, so only Python's own are accepted."""
    with pytest.raises(ModelFormatError, match=r"takes or returns a mine\.Pair"):
        write_checked(archive(tmp_path / "m.pt2", spec="mine.Pair"), tmp_path / "c.pt2")


def test_program_of_the_older_format_is_told(tmp_path):
    """Programs before PyTorch 2.8 are pickles; the error says how to save them again."""
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as file:
        file.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(ModelFormatError, match=r"before PyTorch 2\.8"):
        sniff(tmp_path / "old.pt2")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"range_constraints": 1}', "[" * 5000])
def test_damaged_program_is_refused(tmp_path, text):
    """A graph that is not JSON, or JSON of another structure, gives one clear error."""
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as file:
        file.writestr("m/models/model.json", text)
    with pytest.raises(ModelFormatError, match=r"damaged torch\.export program"):
        write_checked(tmp_path / "m.pt2", tmp_path / "c.pt2")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_program_without_pytorch_names_the_extra(tmp_path, child):
    """Without PyTorch, a valid program gives an error with the pip command."""
    with pytest.raises(MissingExtraError, match="torch") as caught:
        load_model(archive(tmp_path / "m.pt2"), child)
    assert "edgekit[torch]" in caught.value.advice


@with_torch
@pytest.mark.heavy
def test_program_that_pytorch_cannot_read_is_told(tmp_path, child):
    """If PyTorch cannot load a checked program, the error names PyTorch and its version."""
    with pytest.raises(ModelFormatError, match=r"PyTorch 2.* cannot load"):
        load_model(archive(tmp_path / "m.pt2"), child)


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize(("name", "rows"), [("net", None), ("fixed", 1)])
def test_program_becomes_a_graph_with_its_names(programs, child, name, rows):
    """Names, shapes and outputs are those of the program, for every batch size."""
    source = load_model(programs / f"{name}.pt2", child)
    assert [(spec.name, spec.shape) for spec in source.graph.inputs] == [("image", (rows, 1, 8, 8))]
    assert "features.0/Conv" in [node.name for node in source.graph.nodes] or "features.1/Conv" in [
        node.name for node in source.graph.nodes
    ]
    x = {"image": np.random.default_rng(0).random((9, 1, 8, 8)).astype(np.float32)}
    [expected], [found] = source.answers(x).values(), source.graph.run(x).values()
    assert expected.shape == (9, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


WHOLE = """
import sys
from converters import convert
found = convert(sys.argv[1], targets=["jetson-orin", "server"], output=sys.argv[2])
print(*[report.source.format for report in found], sorted({"tensorflow", "torch"} & set(sys.modules)))
"""


@with_torch
@pytest.mark.heavy
def test_program_of_two_inputs_converts_for_two_targets(programs, tmp_path):
    """The bundles of a model with attention, two inputs and two outputs agree with the program."""
    rng = np.random.default_rng(1)
    x = {"left": rng.random((3, 5, 4)).astype(np.float32), "right": rng.random((3, 5, 8)).astype(np.float32)}
    command = [sys.executable, "-c", WHOLE, str(programs / "two.pt2"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "pt2 pt2 []"), done.stderr
    answers = []
    for target in ("jetson-orin", "server"):
        folder = tmp_path / f"two-1.0.0-{target}"
        runtime = open_runtime(parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
        answers.append(list(runtime.run(x).values()))
        runtime.close()
    for small, large in zip(*answers, strict=True):
        np.testing.assert_allclose(small, large, atol=1e-2)


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize(("name", "match"), [("training.pt2", "training mode"), ("whole.pt", "pickle")])
def test_unfit_program_is_refused(programs, child, name, match):
    """Active dropout and a pickled module are refused."""
    with pytest.raises(ConversionError, match=match):
        load_model(programs / name, child)


@with_torch
@pytest.mark.heavy
def test_a_fixed_first_axis_of_two_is_no_batch(programs, child):
    """A call takes one sample, which has both rows."""
    source = load_model(programs / "two_rows.pt2", child)
    x = {"image": np.random.default_rng(3).random((3, 2, 1, 8, 8)).astype(np.float32)}
    [expected], [found] = source.answers(x).values(), source.graph.run(x).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@with_torch
@pytest.mark.heavy
def test_dictionaries_and_numbers_are_arguments_too(programs, child):
    """A dictionary of tensors is flattened; a number keeps the value that the program was exported with."""
    source = load_model(programs / "named.pt2", child)
    assert [spec.name for spec in source.graph.inputs] == ["given_a", "given_b"]
    x = {name: np.random.default_rng(1).random((5, 4)).astype(np.float32) for name in ("given_a", "given_b")}
    expected, found = source.answers(x), source.graph.run(x)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "near"), [("float16", 5e-3), ("bfloat16", 4e-2), ("float64", 1e-5)])
def test_other_floats_become_float32(kind, near, programs, child):
    """The graph is float32; the program's own answers are near it, within the noise of its type."""
    source = load_model(programs / f"{kind}.pt2", child)
    assert {spec.dtype for spec in (*source.graph.inputs, *source.graph.outputs)} == {DType.FLOAT32}
    assert source.precision == kind
    x = {"image": np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)}
    [expected], [found] = source.answers(x).values(), source.graph.run(x).values()
    np.testing.assert_allclose(found, expected, atol=near)


@with_torch
@pytest.mark.heavy
def test_a_scalar_argument_is_run_in_its_own_layout(programs, child):
    """Samples have an axis that the scalar of the program has not."""
    source = load_model(programs / "scaled.pt2", child)
    rng = np.random.default_rng(2)
    x = {spec.name: 1 + rng.random((3, *spec.shape[1:])).astype(np.float32) for spec in source.graph.inputs}
    [expected], [found] = source.answers(x).values(), source.graph.run(x).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@with_torch
@pytest.mark.heavy
def test_operator_without_an_onnx_form_is_taken_in_its_parts(programs, child):
    """PyTorch exports attention over (N, T, C) only after it is split into core operators."""
    source = load_model(programs / "attending.pt2", child)
    assert "Softmax" in source.graph.operators
    x = {"x": np.random.default_rng(3).random((3, 5, 4)).astype(np.float32)}
    [expected], [found] = source.answers(x).values(), source.graph.run(x).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("counting", ModelFormatError, r"changes its own variables .*seen"),
        ("by_size", ModelFormatError, r"a branch that a free size decides: StrictGreaterThan"),
        ("loop", UnsupportedOpError, r"higher_order\.while_loop.*control flow that depends on values"),
        ("above", ModelFormatError, r"a size that depends on values"),
    ],
)
def test_programs_that_no_target_can_run_are_refused(name, kind, message, programs, child):
    """Changed buffers, loops, branches of a free size and sizes of values have an error with what to do."""
    with pytest.raises(kind, match=message) as caught:
        load_model(programs / f"{name}.pt2", child)
    assert caught.value.advice


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize(("name", "branches"), [("by_values", 1), ("by_buffer", 0)])
def test_a_branch_that_a_constant_decides_is_folded_and_others_stay(name, branches, programs, child):
    """torch.cond becomes an If; the values of one row decide it, so the program answers rows one at a time."""
    source = load_model(programs / f"{name}.pt2", child)
    assert source.graph.operators.get("If", 0) == branches
    x = np.random.default_rng(0).normal(0, 1, (6, 5, 4)).astype(np.float32)
    x[::2] += 1
    x[1::2] -= 1
    [expected], [found] = source.answers({"x": x}).values(), source.graph.run({"x": x}).values()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    doubled = x.sum((1, 2)) > 0 if branches else np.ones(6, bool)
    np.testing.assert_allclose(found, np.where(doubled[:, None, None], 2 * x, x - 1), atol=1e-6)


@with_torch
@pytest.mark.heavy
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_writes_into_parts_of_a_tensor_are_read_as_the_program_has_them(suffix, programs, child):
    """Columns, ranges, the last column, and where a mask is true: no list of places, whose size depends on the data."""
    source = load_model(programs / f"writing.{suffix}", child)
    assert not [node for node in source.graph.nodes if node.op_type == "NonZero"]
    x = np.random.default_rng(0).normal(0, 1, (5, 5, 4)).astype(np.float32)
    y = x * 2
    y[:, 0] = x[:, 1]
    y[:, 2:4] = 0.5
    y[..., -1] = 3.0
    y[y > 2.5] = 1.0
    z = np.zeros((5, 5, 6), np.float32)
    z[:, :, 2:] = y
    z[:, 1] -= 1
    (answer,) = source.graph.run({source.graph.inputs[0].name: x}).values()
    np.testing.assert_allclose(answer, z, rtol=1e-6)
    (own,) = source.answers({source.graph.inputs[0].name: x}).values()
    np.testing.assert_allclose(own, z, rtol=1e-6)


@with_torch
@pytest.mark.heavy
def test_a_process_that_ended_loads_the_program_again(programs, child):
    """After a crash, the next answers come from a new process."""
    source = load_model(programs / "net.pt2", child)
    x = {"image": np.ones((2, 1, 8, 8), np.float32)}
    [before] = source.answers(x).values()
    child._torch.close()
    [after] = source.answers(x).values()
    np.testing.assert_array_equal(after, before)

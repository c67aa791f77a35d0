"""Full-integer files for Edge TPU and Ethos-U: checks of operators and types, and the vendors' compilers."""

import os
import shutil
import stat

import msgspec
import numpy as np
import pytest
from onnx import helper

from converters.backends import ConversionContext, backend_for
from converters.backends.accelerators import accelerators, compile_for, faults
from converters.backends.layers import layers_of
from converters.backends.litert import LiteRTBackend
from converters.data.samples import Samples
from converters.frontends.onnx import canonical
from converters.options import ConversionOptions
from converters.pipeline import run_plan
from converters.plan import make_plan
from edgekit.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import builtin_targets
from edgekit.errors import ConversionError
from tests.simulators import models
from tests.simulators.conv_models import separable

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def context(child, tmp_path_factory):
    graph = separable()
    images, _ = models.patterns(40)
    folder = tmp_path_factory.mktemp("accelerators")
    return ConversionContext(graph, graph.with_batch(1), Samples({"image": images}), child, folder)


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A PATH that holds only the given script, under the compiler's name."""

    def only(name="", script=""):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        if name:
            file = folder / name
            file.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))

    return only


def test_weights_that_another_layer_makes_do_not_fit(child, tmp_path):
    """Accelerators read weights when the file is compiled."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["p"]),
        helper.make_node("Reshape", ["p", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["k"]),
        helper.make_node("Reshape", ["k", "s"], ["w"]),
        helper.make_node("Conv", ["image", "w"], ["c"], group=4, name="made"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"flat": np.array([1, 4]), "m": rng.normal(size=(4, 36)).astype(np.float32), "s": np.array([4, 1, 3, 3])}
    graph = canonical(models.model_of(nodes, {"image": [1, 4, 8, 8]}, {"y": [1, 4, 1, 1]}, weights), "test")
    samples = Samples({"image": rng.normal(size=(40, 4, 8, 8)).astype(np.float32)})
    context = ConversionContext(graph, graph, samples, child, tmp_path)
    with pytest.raises(ConversionError, match=r"layer 'made'\) computes with weights that another layer makes"):
        backend_for(builtin_targets()["coral-edgetpu"], "litert", context).build(Recipe("int8"))


@pytest.mark.parametrize("name", ["coral-edgetpu", "ethos-u55"])
def test_int8_fits_and_says_that_no_compiler_was_there(name, context, only):
    """All tensors are integers, also inputs and outputs; a note says that no compiler ran."""
    only()
    artifact = backend_for(builtin_targets()[name], "litert", context).build(Recipe("int8"))
    assert artifact.inputs[0].artifact.dtype.value == artifact.outputs[0].artifact.dtype.value == "int8"
    assert artifact.compiled == b""
    assert "not installed" in artifact.notes[0]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe("float32"), "float32, expected integers only"),
        (Recipe("int8-dynamic"), "an input or output is float32"),
        (Recipe("int8", float_layers=("point1",)), "DEQUANTIZE"),
        (Recipe("int8", int4_layers=("point1",)), "int4, expected integers"),
    ],
    ids=lambda value: getattr(value, "id", ""),
)
def test_what_is_not_full_integer_is_refused(recipe, says, context, only):
    """The error names the operator and the type; these accelerators have no 4-bit type."""
    only()
    backend = LiteRTBackend(context, accelerator=accelerators()["edgetpu"])
    with pytest.raises(ConversionError, match="does not run on Edge TPU") as caught:
        backend.build(recipe)
    assert says in str(caught.value)


def test_operators_that_the_accelerator_lacks_are_named(context):
    """The error names all such operators, with their index."""
    data = LiteRTBackend(context).build(Recipe("int8")).data
    known = accelerators()["ethos-u55"]
    assert faults(data, known) == []
    fewer = msgspec.structs.replace(known, operators=tuple(o for o in known.operators if o not in ("MEAN", "SOFTMAX")))
    assert [fault.split(",")[1].strip() for fault in faults(data, fewer)] == ["MEAN", "SOFTMAX"]
    narrow = msgspec.structs.replace(known, large_axes=2)
    assert "makes [1, 8, 8, 8], expected at most 2" in faults(data, narrow)[0]
    none = msgspec.structs.replace(known, operators=())
    [convolutions] = [fault for fault in faults(data, none) if ", CONV_2D," in fault]
    assert convolutions.endswith("is not supported by " + known.title)
    assert " more) " in convolutions


def test_faults_name_the_layers_while_the_file_has_names(context):
    """Before names are stripped, each fault has its first layer; types are no fault of a float file."""
    data = context.lowered(context.fixed).path.read_bytes()
    none = msgspec.structs.replace(accelerators()["ethos-u55"], operators=("SOFTMAX",))
    found = faults(data, none, quantized=False)
    layers = {layer.name for layer in layers_of(context.fixed)}
    assert any(f"(layer '{name}'" in fault for name in layers for fault in found)
    assert all(fault.endswith("is not supported by " + none.title) for fault in found)


def test_compiled_file_is_kept_with_what_was_left_out(context, only):
    """Operators that the Edge TPU compiler did not map are in the notes."""
    only(
        "edgetpu_compiler",
        'cp "$4" "$3/model_edgetpu.tflite"; printf "Operator   Count   Status\\n\\nCONV_2D   3   Mapped to Edge TPU\\n'
        'SOFTMAX   1   Operation is otherwise supported, but not mapped\\n"',
    )
    artifact = LiteRTBackend(context, accelerator=accelerators()["edgetpu"]).build(Recipe("int8"))
    assert artifact.compiled == artifact.data
    assert artifact.notes == (
        "compiled by edgetpu_compiler",
        "1 SOFTMAX: Operation is otherwise supported, but not mapped",
    )


@pytest.mark.parametrize(
    ("script", "says"),
    [("echo no such luck >&2; exit 3", r"exit status 3; edgekit --verbose"), ("exit 0", r"\(it wrote no file\)")],
)
def test_the_output_of_a_compiler_that_fails_is_for_verbose(script, says, context, only, tmp_path):
    """The error has the compiler's exit status; its output is not part of the message."""
    only("vela", script)
    (tmp_path / "model.tflite").write_bytes(LiteRTBackend(context).build(Recipe("int8")).data)
    with pytest.raises(ConversionError, match=f"vela refuses the model.*{says}") as caught:
        compile_for(tmp_path / "model.tflite", accelerators()["ethos-u55"], tmp_path / "out")
    assert "no such luck" not in str(caught.value)
    assert caught.value.foreign_text == ("no such luck" if "luck" in script else "")


@pytest.mark.skipif(shutil.which("vela") is None, reason="needs vela on the PATH: pip install ethos-u-vela")
def test_vela_takes_the_file_whole(context):
    """Arm's compiler maps every operator, with and without names."""
    artifact = LiteRTBackend(context, accelerator=accelerators()["ethos-u55"]).build(Recipe("int8"))
    assert artifact.notes == ("compiled by vela",)
    assert artifact.compiled[4:8] == b"TFL3"
    assert artifact.compiled != artifact.data


def test_compiled_file_is_in_the_bundle(onnx_folder, only, tmp_path, child, monkeypatch):
    """The compiled file is in the bundle beside the measured model, and listed in the manifest."""
    found = os.environ["PATH"]
    only("vela", 'cp "$5" "$4/model_vela.tflite"; echo "CPU operators = 0 (0.0%)"')
    monkeypatch.setenv("PATH", os.environ["PATH"] + os.pathsep + found)
    data = onnx_folder / "data.npz"
    plan = make_plan(
        onnx_folder / "model.onnx",
        ConversionOptions(targets=["ethos-u55"], data=data, output=tmp_path, accept_unproven=True),
    )
    run_plan(plan, child=child)
    folder = tmp_path / "model-1.0.0-ethos-u55"
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    roles = {entry.path: entry.role for entry in manifest.files}
    assert roles["model.compiled.tflite"] == "compiled"
    assert (folder / "model.compiled.tflite").read_bytes()[4:8] == b"TFL3"
    np.testing.assert_equal((folder / "model.compiled.tflite").stat().st_size, (folder / "model.tflite").stat().st_size)

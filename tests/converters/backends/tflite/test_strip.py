import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.backends.context import ConversionContext
from converters.backends.litert import LiteRTBackend
from converters.backends.tflite.strip import strip
from converters.data.samples import Samples
from converters.first_runs import noise_of, require_equal
from converters.frontends.onnx import canonical
from edgekit.bundle.recipe import PRESETS
from edgekit.errors import ConversionError, ParityError
from edgekit.runtimes.litert import LiteRTRuntime
from edgekit.tensors import DType, TensorSpec
from tests.simulators import models

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def files(child, tmp_path_factory):
    """A classifier in each precision, before and after the strip: {precision: (before, after)}."""
    folder = tmp_path_factory.mktemp("strip")
    graph = canonical(models.classifier(), "test")
    images, _ = models.patterns(20)
    backend = LiteRTBackend(ConversionContext(graph, graph.with_batch(1), Samples({"image": images}), child, folder))
    found = {}
    for name, recipe in PRESETS.items():
        backend.build(recipe)
        before = next(folder.glob("float32-*.tflite")) if name == "float32" else folder / f"litert-{recipe.id}.tflite"
        found[name] = before, folder / f"litert-{recipe.id}-stripped.tflite"
    return found


@pytest.mark.parametrize("precision", PRESETS)
def test_stripped_file_is_smaller_and_answers_bit_by_bit(precision, files):
    """The signature stays, and every answer has the same bits."""
    before, after = files[precision]
    assert after.stat().st_size < 0.9 * before.stat().st_size
    first, second = LiteRTRuntime(before), LiteRTRuntime(after)
    assert (first.inputs, first.outputs, first.quantization) == (second.inputs, second.outputs, second.quantization)
    images, _ = models.patterns(10, seed=4)
    for image in images.transpose(0, 2, 3, 1)[:, None]:
        x = {"input_0": (image * 50).astype(first.inputs[0].dtype.numpy)}
        assert first.run(x)["output_0"].tobytes() == second.run(x)["output_0"].tobytes()


def test_weights_lie_on_boundaries_of_16_and_names_are_gone(files):
    """Weights stay aligned as the schema requires, and no tensor has a name."""
    model = schema.Model.GetRootAs(files["int8"][1].read_bytes(), 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert starts
    assert not any(start % 16 for start in starts)
    graph = model.Subgraphs(0)
    assert not [graph.Tensors(i).Name() for i in range(graph.TensorsLength()) if graph.Tensors(i).Name()]


def test_stripping_twice_changes_nothing(files):
    """A stripped file comes back unchanged."""
    data = files["int8"][1].read_bytes()
    assert strip(data) == data


def test_weights_behind_the_flatbuffer_are_kept(files, tmp_path):
    """Weights that lie after the flatbuffer are kept."""
    data = files["float32"][0].read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    moved = next(buffer for buffer in model.buffers if buffer.data is not None and len(buffer.data) > 64)
    content, moved.data = bytes(moved.data), None
    moved.offset = moved.size = 2**31  # as large as they will be, so that the file keeps its length
    length = len(_packed(model))
    start = -(-length // 16) * 16
    moved.offset, moved.size = start, len(content)
    outside = tmp_path / "outside.tflite"
    outside.write_bytes(_packed(model).ljust(start, b"\0") + content)
    (tmp_path / "inside.tflite").write_bytes(strip(outside.read_bytes()))
    require_equal(outside, tmp_path / "inside.tflite")
    require_equal(files["float32"][0], tmp_path / "inside.tflite")


def test_changed_weight_is_found(files, tmp_path):
    """A changed weight is a parity error."""
    data = bytearray(files["float32"][1].read_bytes())
    model = schema.Model.GetRootAs(bytes(data), 0)
    largest = max((model.Buffers(i) for i in range(model.BuffersLength())), key=lambda b: b.DataLength())
    start = largest._tab.Vector(largest._tab.Offset(4))
    data[start : start + 4] = np.float32(9.0).tobytes()
    (tmp_path / "changed.tflite").write_bytes(data)
    with pytest.raises(ParityError, match="strip"):
        require_equal(files["float32"][1], tmp_path / "changed.tflite")


def test_what_is_no_tflite_is_refused():
    """Data of another format is refused with an error."""
    with pytest.raises(ConversionError, match=r"expected a \.tflite"):
        strip(b"not a model at all")


def _packed(model):
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_trial_inputs_have_every_type():
    """Truth values are drawn too: LiteRT files with such an input could not be made at all."""
    for dtype in (DType.BOOL, DType.UINT8, DType.INT8, DType.INT64, DType.FLOAT32):
        drawn = noise_of(TensorSpec("x", dtype, (None, 40)), np.random.default_rng(0))
        assert (drawn.dtype, drawn.shape) == (dtype.numpy, (1, 40))
        assert len(np.unique(drawn)) > 1

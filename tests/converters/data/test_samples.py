import numpy as np
import pytest

from converters.data.element_types import lost_in_float32
from converters.data.samples import Samples, calibration_share, load_samples, split_samples
from converters.graph.interface import Interface, SourceInput
from converters.quality.drop import samples_needed
from edgekit.errors import DataError
from edgekit.tensors import DType, TensorSpec

IMAGE = TensorSpec("image", DType.FLOAT32, (None, 4, 4, 1))
MASK = TensorSpec("mask", DType.FLOAT32, (None, 4))


def data(path, **arrays):
    np.savez(path, **arrays)
    return path


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, 4, 4, 1)).astype(np.float32)


def test_x_and_y_are_read_for_one_input(tmp_path):
    """A file with x and y serves a model with one input."""
    found = load_samples(data(tmp_path / "d.npz", x=images(7), y=np.arange(7)), [IMAGE])
    assert len(found) == 7
    assert list(found.labels) == list(range(7))


def test_wrong_shape_shows_both_shapes(tmp_path):
    """The error has the found shape and the model's shape."""
    with pytest.raises(DataError) as caught:
        load_samples(data(tmp_path / "d.npz", x=images(3).reshape(3, 1, 4, 4)), [IMAGE])
    assert "[3, 1, 4, 4]" in str(caught.value)
    assert "[any, 4, 4, 1]" in str(caught.value)


def test_wrong_dtype_shows_both(tmp_path):
    """uint8 images for a float model: both dtypes are shown, and how to save them."""
    with pytest.raises(DataError, match=r"dtype is uint8, expected float32") as caught:
        load_samples(data(tmp_path / "d.npz", x=np.zeros((3, 4, 4, 1), np.uint8)), [IMAGE])
    assert "x / 255" in caught.value.advice


TOKENS = {kind: TensorSpec("ids", DType(kind), (None, 3)) for kind in ("int32", "int64", "uint8", "bool")}


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (IMAGE, images(4).astype(np.float64) + 1e-12),
        (IMAGE, images(4).astype(np.float16)),
        (TOKENS["int64"], np.full((4, 3), -7, np.int32)),
        (TOKENS["int32"], np.full((4, 3), 30521, np.int64)),
        (TOKENS["uint8"], np.full((4, 3), 255, np.int64)),
        (TOKENS["bool"], np.eye(4, 3, dtype=np.int64)),
        (TOKENS["int64"], np.eye(4, 3, dtype=bool)),
    ],
)
def test_numbers_in_another_type_are_taken(tmp_path, spec, value):
    """float64 of numpy, int64 of tokenizers: the same numbers in the model's type."""
    found = load_samples(data(tmp_path / "d.npz", x=value), [spec]).inputs[spec.name]
    assert found.dtype == spec.dtype.numpy
    np.testing.assert_allclose(found.astype(np.float64), value.astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "value", "advice"),
    [
        (TOKENS["int32"], np.full((4, 3), 2**31, np.int64), "2147483648, which int32 cannot hold"),
        (TOKENS["uint8"], np.full((4, 3), -1, np.int64), "-1 to -1, which uint8 cannot hold"),
        (IMAGE, np.full((4, 4, 4, 1), 1e39), "which float32 cannot hold"),
        (TOKENS["int64"], np.ones((4, 3), np.float32), ""),
    ],
)
def test_numbers_that_the_type_cannot_hold_are_refused(tmp_path, spec, value, advice):
    """Nothing wraps around, becomes infinite or is cut off."""
    with pytest.raises(DataError, match=f"dtype is {value.dtype}") as caught:
        load_samples(data(tmp_path / "d.npz", x=value), [spec])
    assert advice in caught.value.advice


def test_all_faults_are_told_at_once(tmp_path):
    """Two wrong inputs give one error that names both."""
    file = data(tmp_path / "d.npz", image=np.zeros((3, 5), np.int64), mask=np.zeros((3, 9), np.float32))
    with pytest.raises(DataError) as caught:
        load_samples(file, [IMAGE, MASK])
    assert "image: dtype" in str(caught.value)
    assert "mask: shape" in str(caught.value)


def test_missing_input_is_named(tmp_path):
    """A model with two inputs needs both arrays under their names."""
    with pytest.raises(DataError, match="holds the arrays x, expected image, mask, and y"):
        load_samples(data(tmp_path / "d.npz", x=images(3)), [IMAGE, MASK])


def test_rows_must_be_equally_many(tmp_path):
    """Labels for other rows are refused with both counts."""
    with pytest.raises(DataError, match="image has 3, y has 2"):
        load_samples(data(tmp_path / "d.npz", x=images(3), y=np.arange(2)), [IMAGE])


def test_undefined_values_are_refused(tmp_path):
    """The error names an array with NaN."""
    x = images(3)
    x[1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        load_samples(data(tmp_path / "d.npz", x=x), [IMAGE])


@pytest.mark.parametrize("content", [b"not numpy", b"PK\x03\x04 cut", b""])
def test_damaged_file_is_a_data_error(tmp_path, content):
    """A file that numpy cannot read is refused with its name."""
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz"):
        load_samples(path, [IMAGE])


def test_python_objects_are_never_unpickled(tmp_path):
    """An array of objects is a pickle, and is refused."""
    np.savez(tmp_path / "d.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError):
        load_samples(tmp_path / "d.npz", [IMAGE])


def test_split_does_not_depend_on_the_order_of_rows():
    """The same rows in another order are in the same parts, with the same digest."""
    x = images(100)
    order = np.random.default_rng(1).permutation(100)
    a, b = split_samples(Samples({"image": x})), split_samples(Samples({"image": x[order]}))
    assert a.digest == b.digest
    for part in ("calibration", "choice", "proof"):
        one = {row.tobytes() for row in getattr(a, part).inputs["image"]}
        assert one == {row.tobytes() for row in getattr(b, part).inputs["image"]}


def test_split_has_its_shares_and_no_common_row():
    """20, 20 and 60 rows of 100, each row once."""
    split = split_samples(Samples({"image": images(100)}, np.arange(100)))
    parts = [split.calibration, split.choice, split.proof]
    assert [len(part) for part in parts] == [20, 20, 60]
    assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100))


def test_calibration_gets_what_a_proof_does_not_need():
    """With a point estimate accepted, the proof keeps the rows of a proof without losses; half of all rows at most.

    Of too few rows for any proof, calibration gets fifty.
    """
    assert calibration_share(80, 0.01, 0.95) == 0.5
    assert calibration_share(125, 0.01, 0.95) == 0.4
    assert calibration_share(400, 0.01, 0.95) == 0.2
    assert calibration_share(400, 0.03, 0.95) == 0.5
    for rows in (500, 505, 600, 777, 1000):  # rounded shares leave a proof all the rows that it needs
        assert 0.8 * rows - calibration_share(rows, 0.01, 0.95) * rows >= samples_needed(0.01, 0.95) + 0.5
    assert calibration_share(1000, 0.01, 0.95) == 0.256
    for rows, drop in ((5000, 0.01), (100, 0.0), (100, 3.0)):
        assert calibration_share(rows, drop, 0.95) == 0.2
    split = split_samples(Samples({"image": images(100)}, np.arange(100)), 0.5)
    parts = [split.calibration, split.choice, split.proof]
    assert [len(part) for part in parts] == [50, 20, 30]
    assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100))


def test_equal_rows_stay_together_where_that_is_asked():
    """Duplicate rows are in one part, as in bundles of release 0.1.0."""
    x = np.repeat(images(20), 5, axis=0)
    split = split_samples(Samples({"image": x}), together=True)
    seen = [{row.tobytes() for row in part.inputs["image"]} for part in (split.calibration, split.choice, split.proof)]
    assert len(set.union(*seen)) == sum(len(part) for part in seen) == 20


def test_too_few_rows_are_refused():
    """Three rows cannot be split."""
    with pytest.raises(DataError, match="3 rows"):
        split_samples(Samples({"image": np.zeros((3, 4, 4, 1), np.float32)}))


def test_labels_of_text_or_undefined_values_are_refused(tmp_path):
    """Labels must be finite numbers; the errors name y."""
    with pytest.raises(DataError, match="y: dtype is <U1"):
        load_samples(data(tmp_path / "d.npz", x=images(3), y=np.array(["a", "b", "c"])), [IMAGE])
    with pytest.raises(DataError, match="y: holds NaN"):
        load_samples(data(tmp_path / "d.npz", x=images(3), y=np.array([1.0, np.nan, 0.0])), [IMAGE])


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_values_that_float32_holds_are_taken(offset):
    """Ordinary values, and a column that never changes."""
    rows = offset + np.random.default_rng(0).normal(0, 100, (50, 3))
    rows[:, 2] = 1.7e9 + 1
    assert lost_in_float32("x", rows) == ""
    assert lost_in_float32("x", rows.astype(np.float32)) == ""


def test_time_stamps_that_float32_rounds_are_refused(tmp_path):
    """A float64 model reads the hour of time stamps; in float32 they come in steps of 128 seconds."""
    spec = TensorSpec("t", DType.FLOAT64, (None, 1))
    interface = Interface((SourceInput(spec),), ())
    rows = 1.7e9 + np.random.default_rng(0).random((50, 1)) * 86400
    with pytest.raises(DataError, match=r"float32 rounds values of input t near 1\.7e\+09 by up to 6") as caught:
        load_samples(data(tmp_path / "d.npz", t=rows), [TensorSpec("t", DType.FLOAT32, (None, 1))], interface=interface)
    assert "Subtract the offset" in caught.value.advice


def test_channels_on_another_axis_and_complex_numbers_are_told(tmp_path):
    """The advice has the transposition to paste; the array with complex numbers is named."""
    spec = (TensorSpec("image", DType.FLOAT32, (None, 3, 8, 9)),)
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((5, 8, 9, 3), np.float32))
    with pytest.raises(DataError, match="expected") as caught:
        load_samples(path, spec)
    assert "image.transpose(0, 3, 1, 2)" in caught.value.advice
    np.savez(path, x=np.zeros((5, 3, 8, 9), np.complex64))
    with pytest.raises(DataError, match="image is complex64"):
        load_samples(path, spec)

"""Tensor types and recipes: small values that are validated early."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import DataError, RecipeError
from edgekit.recipe import PRECISIONS, PRESETS, RANGES, Recipe, preset
from edgekit.tensors import DType, TensorSpec


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BYTES])
def test_a_dtype_is_numpys(dtype: DType) -> None:
    """The trip through numpy ends where it began, for either byte order."""
    assert DType.of(dtype.numpy) is dtype
    assert DType.of(dtype.numpy.newbyteorder(">")) is dtype
    assert dtype.numpy.name == dtype.value


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([b"a"]), np.array([b"a"], dtype=object)])
def test_strings_of_any_kind_are_bytes(value: np.ndarray) -> None:
    """Text, fixed bytes and objects are all variable-length byte strings."""
    assert DType.of(value.dtype) is DType.BYTES


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "timedelta64[s]", "longdouble"])
def test_a_dtype_that_no_runtime_takes_is_refused(dtype: str) -> None:
    """The error names what was found."""
    if np.dtype(dtype) == np.dtype("float64"):
        pytest.skip("long double is float64 on this machine")
    with pytest.raises(DataError, match=np.dtype(dtype).name.partition("[")[0]):
        DType.of(dtype)


shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(want=shapes, have=shapes)
def test_a_shape_fits_when_every_fixed_axis_does(want: tuple[int, ...], have: tuple[int, ...]) -> None:
    """A free axis takes any size, the number of axes is fixed, and a fault shows both shapes."""
    spec = TensorSpec("x", DType.FLOAT32, (None, *want))
    faults = spec.faults(np.zeros((7, *have), np.float32))
    assert (not faults) == (want == have)
    assert all(str([7, *have]) in fault and spec.shape_text in fault for fault in faults)


def test_dtype_and_shape_faults_are_told_together() -> None:
    """Both are named, with the tensor, as found and as expected."""
    faults = TensorSpec("image", DType.FLOAT32, (None, 32, 32, 1)).faults(np.zeros((2, 28, 28), np.int64))
    assert faults == [
        "image: dtype is int64, expected float32",
        "image: shape is [2, 28, 28], expected [any, 32, 32, 1]",
    ]


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_has_a_preset_of_its_name(name: str) -> None:
    """The preset's id is its name."""
    assert preset(name).id == name
    assert set(PRESETS) == set(PRECISIONS)


def test_an_unknown_preset_names_the_nearest() -> None:
    """A typo is answered with what was probably meant."""
    with pytest.raises(RecipeError, match="int9") as caught:
        preset("int9")
    assert "'int8'" in caught.value.advice


@pytest.mark.parametrize("fields", [{"precision": "int4"}, {"ranges": "max"}], ids=str)
def test_a_bad_choice_is_refused_when_it_is_made(fields: dict[str, str]) -> None:
    """The error shows what was found and what is allowed, also when the recipe comes from a file."""
    (value,) = fields.values()
    with pytest.raises(RecipeError, match=f"'{value}', expected one of"):
        Recipe(**fields)  # type: ignore[arg-type]
    with pytest.raises((RecipeError, msgspec.ValidationError), match="expected one of"):
        msgspec.json.decode(msgspec.json.encode(fields), type=Recipe)


def test_a_misspelt_field_of_a_recipe_is_refused() -> None:
    """A choice that nobody reads is not accepted in silence."""
    with pytest.raises(msgspec.ValidationError, match="per_chanel"):
        msgspec.json.decode(b'{"per_chanel":false}', type=Recipe)


recipes = st.builds(
    Recipe,
    precision=st.sampled_from(PRECISIONS),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
    ranges=st.sampled_from(RANGES),
    float_layers=st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3).map(tuple),
)


@given(recipe=recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    """It is saved in the bundle and read back as the same choices."""
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


@given(one=recipes, other=recipes)
def test_ids_of_int8_recipes_differ_when_their_choices_do(one: Recipe, other: Recipe) -> None:
    """Two int8 candidates of one report have two ids, apart from which layers are float: the number stands there."""
    if one.precision == other.precision == "int8":
        same = (one.per_channel, one.symmetric, one.ranges, len(one.float_layers)) == (
            other.per_channel,
            other.symmetric,
            other.ranges,
            len(other.float_layers),
        )
        assert (one.id == other.id) == same

"""Tensor types and recipes: both are checked when they are made."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.recipe import PRECISIONS, PRESETS, RANGES, ROUNDINGS, Recipe, preset
from edgekit.errors import DataError, RecipeError
from edgekit.tensors import DType, TensorSpec


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BYTES])
def test_a_dtype_is_numpys(dtype: DType) -> None:
    """Conversion to numpy and back gives the same dtype, for both byte orders."""
    assert DType.of(dtype.numpy) is dtype
    assert DType.of(dtype.numpy.newbyteorder(">")) is dtype
    assert dtype.numpy.name == dtype.value


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([b"a"]), np.array([b"a"], dtype=object)])
def test_strings_of_any_kind_are_bytes(value: np.ndarray) -> None:
    """Text, fixed-length bytes and objects are all BYTES."""
    assert DType.of(value.dtype) is DType.BYTES


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "timedelta64[s]", "longdouble"])
def test_a_dtype_that_no_runtime_takes_is_refused(dtype: str) -> None:
    """The error names the dtype."""
    if np.dtype(dtype) == np.dtype("float64"):
        pytest.skip("long double is float64 on this machine")
    with pytest.raises(DataError, match=np.dtype(dtype).name.partition("[")[0]):
        DType.of(dtype)


shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(want=shapes, have=shapes)
def test_a_shape_fits_when_every_fixed_axis_does(want: tuple[int, ...], have: tuple[int, ...]) -> None:
    """A free axis accepts any size, the rank is fixed, and a fault shows both shapes."""
    spec = TensorSpec("x", DType.FLOAT32, (None, *want))
    faults = spec.faults(np.zeros((7, *have), np.float32))
    assert (not faults) == (want == have)
    assert all(str([7, *have]) in fault and spec.shape_text in fault for fault in faults)


def test_dtype_and_shape_faults_are_told_together() -> None:
    """Both faults are reported with the tensor's name, found and expected value."""
    faults = TensorSpec("image", DType.FLOAT32, (None, 32, 32, 1)).faults(np.zeros((2, 28, 28), np.int64))
    assert faults == [
        "image: dtype is int64, expected float32 (INT64, not FP32)",
        "image: shape is [2, 28, 28], expected [any, 32, 32, 1]",
    ]


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_has_a_preset_of_its_name(name: str) -> None:
    """The preset's id is its name."""
    assert preset(name).id == name
    assert set(PRESETS) == set(PRECISIONS)


def test_an_unknown_preset_names_the_nearest() -> None:
    """The error names the most similar preset."""
    with pytest.raises(RecipeError, match="int9") as caught:
        preset("int9")
    assert "'int8'" in caught.value.advice


@pytest.mark.parametrize("fields", [{"precision": "int4"}, {"ranges": "max"}, {"rounding": "up"}], ids=str)
def test_a_bad_choice_is_refused_when_it_is_made(fields: dict[str, str]) -> None:
    """The error shows the found and the allowed values, also for a recipe from a file."""
    (value,) = fields.values()
    with pytest.raises(RecipeError, match=f"'{value}', expected one of"):
        Recipe(**fields)  # type: ignore[arg-type]
    with pytest.raises((RecipeError, msgspec.ValidationError), match="expected one of"):
        msgspec.json.decode(msgspec.json.encode(fields), type=Recipe)


def test_a_misspelt_field_of_a_recipe_is_refused() -> None:
    """An unknown field is an error and not ignored."""
    with pytest.raises(msgspec.ValidationError, match="per_chanel"):
        msgspec.json.decode(b'{"per_chanel":false}', type=Recipe)


def test_layers_of_4_bit_belong_to_an_integer_recipe() -> None:
    """A float recipe has no 4-bit layers, and no layer is both float and 4-bit."""
    with pytest.raises(RecipeError, match="precision is 'float16', expected an int8 precision"):
        Recipe(precision="float16", int4_layers=("a",))
    with pytest.raises(RecipeError, match="per_channel is false"):
        Recipe(precision="int8", int4_layers=("a",), per_channel=False)
    with pytest.raises(RecipeError, match="a, b: listed in float_layers and in int4_layers"):
        Recipe(precision="int8-dynamic", int4_layers=("b", "c", "a"), float_layers=("a", "b"))


def test_a_recipe_of_an_older_bundle_is_read() -> None:
    """Fields that an older release lacked get their default."""
    old = b'{"float_layers":["a"],"per_channel":true,"precision":"int8","ranges":"minmax","symmetric":true}'
    assert msgspec.json.decode(old, type=Recipe) == Recipe("int8", symmetric=True, float_layers=("a",))


def test_the_lowered_route_leaves_a_recipes_bytes_as_they_were() -> None:
    """The default route is stored as absent, so that old digests stay valid."""
    plain = msgspec.json.encode(Recipe("int8"), order="sorted")
    assert b"route" not in plain
    assert Recipe("int8", route="lowered") == Recipe("int8")
    assert msgspec.json.encode(Recipe("int8", route="lowered"), order="sorted") == plain
    direct = Recipe("int8", route="direct")
    assert msgspec.json.decode(msgspec.json.encode(direct), type=Recipe) == direct
    assert (direct.id, direct.direct, Recipe("int8").direct) == ("int8-direct", True, False)


def test_the_direct_route_takes_nothing_that_changes_the_graph() -> None:
    """Choices per layer need the canonical graph; an unknown route is refused too."""
    with pytest.raises(RecipeError, match="route is 'direct', but int4_layers, correct_bias work only"):
        Recipe("int8", int4_layers=("a",), correct_bias=True, route="direct")
    with pytest.raises(RecipeError, match="route is 'straight', expected one of lowered, direct"):
        Recipe(route="straight")


def test_what_an_older_bundle_says_keeps_its_bytes() -> None:
    """A recipe without pruning has the bytes of releases without that choice."""
    old = (
        b'{"correct_bias":false,"equalize":false,"float_layers":[],"int4_layers":[],"per_channel":true,'
        b'"precision":"int8","ranges":"minmax","rounding":"nearest","symmetric":false}'
    )
    for recipe in (Recipe("int8"), Recipe("int8", prune="none"), msgspec.json.decode(old, type=Recipe)):
        assert msgspec.json.encode(recipe, order="sorted") == old
    assert Recipe("int8", prune="none") == Recipe("int8")
    assert msgspec.json.encode(Recipe("int8", prune="dead"), order="sorted") != old


def test_prune_is_none_or_dead() -> None:
    """Other values are refused with the allowed ones; the id of a pruned recipe says so."""
    with pytest.raises(RecipeError, match=r"prune is '0.5', expected one of none, dead, channels"):
        Recipe(prune="0.5")
    assert Recipe("int8", symmetric=True, prune="dead", equalize=True).id == "int8-symmetric-pruned-equalized"
    assert Recipe(prune="dead").pruned
    assert not Recipe(prune="none").pruned


layers = st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3)
recipes = st.builds(
    lambda float_layers, int4_layers, precision, per_channel, **rest: Recipe(
        precision=precision,
        float_layers=tuple(float_layers),
        per_channel=per_channel,
        int4_layers=tuple(n for n in int4_layers if n not in float_layers)
        if precision.startswith("int8") and per_channel
        else (),
        **rest,
    ),
    layers,
    layers,
    precision=st.sampled_from(PRECISIONS),
    per_channel=st.booleans(),
    symmetric=st.booleans(),
    ranges=st.sampled_from(RANGES),
    rounding=st.sampled_from(ROUNDINGS),
    equalize=st.booleans(),
    correct_bias=st.booleans(),
    prune=st.sampled_from(["none", "dead"]),
)


@given(recipe=recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    """A saved recipe is read back as the same choices."""
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


def _choices(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(
        recipe, float_layers=tuple(sorted(recipe.float_layers)), int4_layers=tuple(sorted(recipe.int4_layers))
    )


@given(one=recipes, other=recipes)
def test_ids_differ_exactly_when_choices_do(one: Recipe, other: Recipe) -> None:
    """Different recipes have different ids; the order of layers does not matter."""
    assert (one.id == other.id) == (_choices(one) == _choices(other))

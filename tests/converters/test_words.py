"""Names of recipes and numbers as people read them."""

import pytest

from converters.words import figure_text, in_words, share_text, size_text, title, titles
from edgekit.bundle.recipe import Recipe


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(), "float32"),
        (Recipe(precision="int8"), "int8"),
        (
            Recipe(precision="int8-dynamic", int4_layers=tuple("abcdefghijklmno"), rounding="gptq"),
            "int8 dynamic, 15 layers at 4 bits, GPTQ",
        ),
        (Recipe(precision="int8-weights", float_layers=("a",)), "int8 weights, 1 layer in float"),
        (Recipe(precision="float32", prune="dead"), "float32, dead channels removed"),
        (Recipe(precision="int8", symmetric=True, ranges="mse"), "int8, symmetric, ranges by squared error"),
        (Recipe(precision="int8", equalize=True, correct_bias=True), "int8, channels equalized, biases corrected"),
        (Recipe(precision="float16", route="direct"), "float16, direct route"),
        (Recipe(precision="int8", per_channel=False), "int8, one scale per tensor"),
        (
            Recipe(prune="channels", kept=(("a", "0-3"),), share=0.5, recovery=("own",)),
            "float32, pruned to 50%, your training loop",
        ),
    ],
)
def test_title_says_every_choice(recipe, expected):
    """Each choice that is not the default is in the title."""
    assert title(recipe) == expected


def test_equal_titles_are_numbered():
    """Recipes that differ only in the layers they name stay apart."""
    one, two = (Recipe(precision="int8", int4_layers=(name,)) for name in "ab")
    named = titles([one, Recipe(), two])
    assert list(named.values()) == ["int8, 1 layer at 4 bits (1)", "float32", "int8, 1 layer at 4 bits (2)"]


def test_ids_in_reasons_become_titles():
    """An id is replaced as a whole; longer ids that begin with it and other words stay intact."""
    names = titles([Recipe(precision="int8"), Recipe(precision="int8", int4_layers=("a",))])
    long = next(name for name in names if name != "int8")
    text = in_words(f"not tested: {long} costs less; int8 too; int8-other stays", names)
    assert text == 'not tested: "int8, 1 layer at 4 bits" costs less; int8 too; int8-other stays'


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (812, "812 B"), (24_678, "24.1 KiB"), (105_472, "103 KiB"), (1 << 20, "1 MiB"), (13 << 20, "13 MiB")],
)
def test_sizes(count, expected):
    """Three digits and a unit."""
    assert size_text(count) == expected


def test_figures_and_shares():
    """Three digits; a share of nothing is a dash."""
    assert [figure_text(v) for v in (0.012345, -3.0, 1_437_200.0, 999.7)] == ["0.0123", "-3", "1,440,000", "1,000"]
    assert [share_text(1, 4), share_text(1, 400), share_text(1, 0)] == ["25 %", "0.25 %", "-"]

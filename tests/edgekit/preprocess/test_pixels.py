"""Each resize method agrees with the library that it is named after."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgekit.preprocess import pixels

SIZES = [((31, 47), (16, 20)), ((8, 9), (33, 21)), ((120, 200), (7, 5)), ((10, 10), (10, 4)), ((1, 5), (3, 3))]
FILTERS = {
    "pillow-box": Image.Resampling.BOX,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
}


def image(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize(("have", "want"), SIZES)
def test_methods_named_after_pillow_are_pillows_to_the_last_bit(
    method: str, have: tuple[int, int], want: tuple[int, int]
) -> None:
    """Shrinking, enlarging and both, on noise that shows every rounding."""
    given = image(*have)
    expected = np.asarray(Image.fromarray(given).resize(want[::-1], FILTERS[method]))
    np.testing.assert_array_equal(pixels.resize(given, *want, method), expected)


@pytest.mark.heavy
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("have", "want"), SIZES)
def test_the_others_are_tensorflows(method: str, have: tuple[int, int], want: tuple[int, int]) -> None:
    """They agree with tf.image.resize without antialias, up to float rounding."""
    tf = pytest.importorskip("tensorflow")
    given = image(*have)
    expected = tf.image.resize(given, want, method=method).numpy()
    # TensorFlow looks cubic weights up in a table of 1024 entries.
    np.testing.assert_allclose(pixels.resize(given, *want, method), expected, atol=0.5 if method == "bicubic" else 1e-3)


def test_bilinear_uses_half_pixel_centres() -> None:
    """Two pixels enlarged to four: quarters between them, constant at the ends."""
    grown = pixels.resize(np.array([[[0], [100]]], np.uint8), 1, 4, "bilinear")
    np.testing.assert_array_equal(grown.ravel(), [0, 25, 75, 100])
    assert grown.dtype == np.float32


def test_letterbox_puts_the_image_in_the_middle() -> None:
    """An odd row is added at the bottom."""
    framed = pixels.letterbox(np.ones((2, 3, 1), np.uint8), 5, 3, 7)
    np.testing.assert_array_equal(framed[:, 0, 0], [7, 1, 1, 7, 7])


@pytest.mark.parametrize(("have", "want"), [((300, 200), (336, 224)), ((200, 301), (224, 337)), ((5, 5), (224, 224))])
def test_the_shorter_side_rules(have: tuple[int, int], want: tuple[int, int]) -> None:
    """The longer side is rounded down."""
    assert pixels.shorter_size(*have, 224) == want

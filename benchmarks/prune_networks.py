"""Networks of the benchmark `prune`: `python -m benchmarks.prune_networks FOLDER [NAME ...]` trains them on digits.

Three are those of the benchmark `convert`; an encoder and a U-Net are added. Each folder gets ``model.keras``,
``data.npz`` (the input of the conversion) and ``test.npz`` (only for the final measurement).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convert_models
from benchmarks.convert_models import SEED, TRAIN, digits, train, write

NAMES = {
    **convert_models.NAMES,
    "encoder": "a 4-layer transformer encoder over the 8 rows of an image",
    "unet": "a U-Net that finds the strokes in a noisy image, judged by the share of right pixels",
}
DATA = {**convert_models.DATA, "encoder": 400, "unet": 400}  # rows of data.npz


def main() -> None:
    """Train and write every network. Progress goes to stderr."""
    import keras

    folder = Path(sys.argv[1])
    images, labels = digits()
    with contextlib.redirect_stdout(sys.stderr):
        for name in sys.argv[2:] or NAMES:
            keras.utils.set_random_seed(SEED)
            model, x, y = MAKERS[name](images, labels)
            write(folder / name, model, x, y, DATA[name])


def encoder(images: Any, labels: Any) -> tuple[Any, Any, Any]:
    """An encoder of 4 layers, 4 heads and width 64 over the rows of an image, and a head on their mean."""
    import keras
    from keras import layers

    rows = images.reshape(-1, 8, 8)
    source = keras.Input((8, 8), name="rows")
    places = np.random.default_rng(SEED).normal(0, 0.3, (8, 64)).astype(np.float32)
    x = layers.Dense(64)(source) + places
    for _ in range(4):
        normal = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 16)(normal, normal)
        x = x + layers.Dense(64)(layers.Dense(192, activation="gelu")(layers.LayerNormalization()(x)))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    model = keras.Model(source, layers.Dense(10, activation="softmax")(x))
    train(model, rows, labels, epochs=30)
    return model, rows, labels


def unet(images: Any, labels: Any) -> tuple[Any, Any, Any]:
    """A U-Net with two levels; its output is the probability that a pixel of the clean image is set."""
    import keras
    from keras import layers

    def block(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return x

    noisy = np.clip(images + np.random.default_rng(SEED).normal(0, 0.25, images.shape), 0, 1).astype(np.float32)
    source = keras.Input((8, 8, 1), name="image")
    first = block(source, 16)
    second = block(layers.MaxPooling2D()(first), 32)
    x = layers.UpSampling2D(interpolation="bilinear")(block(layers.MaxPooling2D()(second), 64))
    x = block(layers.Concatenate()([x, second]), 32)
    x = block(layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(x), first]), 16)
    model = keras.Model(source, layers.Conv2D(1, 1, activation="sigmoid", name="strokes")(x))
    model.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy")
    strokes = (images > 0.5).astype(np.int64)
    model.fit(noisy[:TRAIN], strokes[:TRAIN].astype(np.float32), epochs=25, batch_size=32, verbose=0)
    return model, noisy, strokes


MAKERS = {**convert_models.MAKERS, "encoder": encoder, "unet": unet}

if __name__ == "__main__":
    main()

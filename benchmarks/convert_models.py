"""Trains models on which conversion was not tuned: `python -m benchmarks.convert_models FOLDER`.

Each model is trained on scikit-learn's digits in seconds, with a fixed seed. The folder of each model gets
``model.keras``, ``data.npz`` (the input of the conversion) and ``test.npz`` (only for the final measurement). `NAMES`
names the difficulty of each model.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

SEED = 11
TRAIN, TEST = 897, 500
NAMES = {
    "residual": "a residual network and 80 samples to convert it with",
    "mobilenet": "depthwise and pointwise layers with ReLU6, whose channels died under L1 on their scales",
    "autoencoder": "a dense autoencoder of standardized pixels: those that hardly vary reach 24 deviations",
}
DATA = {"residual": 80, "mobilenet": 400, "autoencoder": 400}  # rows of data.npz


def main() -> None:
    """Train and write every model. Progress goes to stderr."""
    import keras

    folder = Path(sys.argv[1])
    images, labels = digits()
    with contextlib.redirect_stdout(sys.stderr):
        for name in NAMES:
            keras.utils.set_random_seed(SEED)
            model, x, y = MAKERS[name](images, labels)
            write(folder / name, model, x, y, DATA[name])


def digits() -> tuple[Any, Any]:
    """All scans in a fixed order: images (1797, 8, 8, 1), float32 from 0 to 1, and labels (1797,)."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    images = scans[order].reshape(-1, 8, 8, 1) / 16.0
    noisy = np.clip(images + np.random.default_rng(SEED + 1).normal(0, 0.1, images.shape), 0, 1)
    return noisy.astype(np.float32), labels[order].astype(np.int64)


def write(folder: Path, model: Any, x: Any, y: Any, rows: int) -> None:
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    parts = {"data": slice(TRAIN, TRAIN + rows), "test": slice(len(x) - TEST, None)}
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", x=x[part], **({} if y is None else {"y": y[part]}))


def _residual(images: Any, labels: Any) -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    def conv(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
        return layers.BatchNormalization(momentum=0.9)(
            layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
        )

    image = keras.Input((8, 8, 1), name="image")
    x = layers.ReLU()(conv(image, 16))
    for filters, stride in ((16, 1), (32, 2), (48, 2)):
        short = x if stride == 1 else conv(x, filters, stride, 1)
        x = layers.ReLU()(conv(x, filters, stride))
        x = layers.ReLU()(layers.Add()([conv(x, filters), short]))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    train(model, images, labels, epochs=12)
    return model, images, labels


def _mobilenet(images: Any, labels: Any) -> tuple[Any, Any, Any]:
    import keras
    from keras import layers

    def norm(x: Any) -> Any:
        x = layers.BatchNormalization(
            momentum=0.9, gamma_regularizer=keras.regularizers.L1(1.5e-2), beta_regularizer="l2"
        )(x)
        return layers.ReLU(6.0)(x)

    image = keras.Input((8, 8, 1), name="image")
    x = norm(layers.Conv2D(32, 3, padding="same", use_bias=False)(image))
    for filters, stride in ((48, 1), (64, 2), (64, 1), (96, 2), (96, 1)):
        x = norm(layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(x))
        x = norm(layers.Conv2D(filters, 1, use_bias=False)(x))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    train(model, images, labels, epochs=40)
    scales = [layer.gamma.numpy() for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    dead = sum(int((abs(gamma) < 1e-2 * abs(gamma).max()).sum()) for gamma in scales)
    print(f"mobilenet: {dead} of {sum(map(len, scales))} channels are dead", file=sys.stderr)
    return model, images, labels


def _autoencoder(images: Any, labels: Any) -> tuple[Any, Any, Any]:
    import keras
    from keras import layers
    from sklearn.datasets import load_digits

    pixels = (load_digits().data / 16.0).astype(np.float32)[np.random.default_rng(SEED).permutation(len(labels))]
    pixels = pixels[:, pixels[:TRAIN].std(axis=0) > 0]
    scale = layers.Normalization(name="standardize")
    scale.adapt(pixels[:TRAIN])
    source = keras.Input(pixels.shape[1:], name="pixels")
    x = layers.Dense(96, activation="relu")(scale(source))
    x = layers.Dense(16)(x)
    x = layers.Dense(96, activation="relu")(x)
    model = keras.Model(source, layers.Dense(pixels.shape[1], name="standardized")(x))
    model.compile(_adam(120, 2e-3), "mse")
    target = np.asarray(scale(pixels[:TRAIN]))
    model.fit(pixels[:TRAIN], target, epochs=120, batch_size=64, verbose=0)
    reach = float(abs(np.asarray(scale(pixels[TRAIN:]))).max())
    print(f"autoencoder: standardized pixels reach {reach:.1f}", file=sys.stderr)
    return model, pixels, None


def train(model: Any, images: Any, labels: Any, *, epochs: int) -> None:
    model.compile(_adam(epochs, 3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:TRAIN], labels[:TRAIN], epochs=epochs, batch_size=32, verbose=0)
    accuracy = model.evaluate(images[-TEST:], labels[-TEST:], verbose=0)[1]
    print(f"{model.count_params()} parameters, accuracy {accuracy:.3f}", file=sys.stderr)


def _adam(epochs: int, rate: float) -> Any:
    """Adam with a learning rate that falls to 0, so that scales which L1 moves to 0 stay at 0."""
    import keras

    steps = epochs * -(-TRAIN // 32)
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))


MAKERS = {"residual": _residual, "mobilenet": _mobilenet, "autoencoder": _autoencoder}

if __name__ == "__main__":
    main()

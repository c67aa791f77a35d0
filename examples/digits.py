"""The digits model that the demo and every benchmark use, and its data.

    python examples/digits.py -o digits

trains two networks on scikit-learn's 1,797 scans of handwritten digits, enlarged to 32x32 with noise, and prints their
accuracy on the same held-out images: a small one for devices (about 102 thousand parameters, stopped early, near 97 %)
and a larger one for the cloud (also trained on shifted and noisier copies, near 98.5 %). It writes digits.keras,
digits-cloud.keras, data.npz (x, y: for calibration, selection and proof), test.npz (x, y: only for the reported
accuracy) and summary.json. With --next it also writes digits-next.keras, the small model after one more epoch. --seed
changes the order of the images, the noise and the initial weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SEED = 20
TRAIN, DATA, TEST = 897, 500, 400
NOISE = 0.3
SMALL_EPOCHS = 12
CLOUD_EPOCHS = 8


def load_digits_images(seed: int = SEED, noise: float = NOISE) -> tuple[Images, Labels]:
    """All 1,797 scans in a fixed order: images (1797, 32, 32, 1), float32 in [0, 1], and labels (1797,)."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    large = np.kron(scans[order].reshape(-1, 8, 8) / 16.0, np.ones((1, 4, 4)))
    noisy = np.clip(large + rng.normal(0.0, noise, large.shape), 0.0, 1.0)
    return noisy[..., None].astype(np.float32), labels[order].astype(np.int64)


def split(images: Images, labels: Labels) -> dict[str, tuple[Images, Labels]]:
    """The fixed split: ``train`` (897), ``data`` (500) and ``test`` (400)."""
    ends = {"train": (0, TRAIN), "data": (TRAIN, TRAIN + DATA), "test": (TRAIN + DATA, TRAIN + DATA + TEST)}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in ends.items()}


def small_model() -> Any:
    """The small model for devices: convolutions with batch norm, depthwise, 1x1, residual adds, pooling, softmax."""
    from keras import Input, Model, layers

    widths, hidden = (24, 48, 72), 76

    def conv(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    def separable(x: Any, filters: int) -> Any:
        x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return layers.ReLU()(conv(x, filters, 1))

    image = Input((32, 32, 1), name="image")
    x = layers.ReLU()(conv(image, widths[0], 3, stride=2))
    x = separable(x, widths[1])
    branch = layers.ReLU()(conv(x, widths[1], 3))
    x = layers.ReLU()(layers.Add()([x, conv(branch, widths[1], 3)]))
    x = separable(x, widths[2])
    x = layers.ReLU()(layers.Add()([x, conv(x, widths[2], 3)]))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(hidden, activation="relu")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="scores")(x), name="digits")


def cloud_model() -> Any:
    """The larger model for the cloud: plain convolutions behind a mean of 2x2 pixels, five times as many parameters.

    Its layers work on 8x8 and 4x4 positions, the size of the scans, so a training takes a fraction of the time that an
    equally good network on all pixels would need.
    """
    from keras import Input, Model, layers

    def conv(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    image = Input((32, 32, 1), name="image")
    x = conv(layers.AveragePooling2D(2)(image), 48, 5, stride=2)
    x = conv(conv(x, 112, 3, stride=2), 176, 3)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dense(96, activation="relu")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="scores")(x), name="digits-cloud")


def augmented(images: Images, labels: Labels, *, copies: int, seed: int = SEED) -> tuple[Images, Labels]:
    """The images, and `copies` of each image shifted by up to 3 pixels and with more noise."""
    rng = np.random.default_rng(seed + 1)
    parts = [images]
    for _ in range(copies):
        shifts = rng.integers(-3, 4, (len(images), 2))
        rolled = np.stack([np.roll(i, tuple(s), (0, 1)) for i, s in zip(images, shifts, strict=True)])
        parts.append(np.clip(rolled + rng.normal(0.0, 0.15, rolled.shape), 0.0, 1.0).astype(np.float32))
    return np.concatenate(parts), np.tile(labels, copies + 1)


def train(model: Any, images: Images, labels: Labels, *, epochs: int, rate: float, seed: int = SEED) -> None:
    """Fit `model` in place; the same seed gives the same weights on the same machine."""
    import keras

    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(labels) // 32)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=0, shuffle=True)


def accuracy(model: Any, images: Images, labels: Labels) -> float:
    """Share of images (N, 32, 32, 1) whose largest score names the label."""
    scores = model.predict(images, batch_size=100, verbose=0)
    return float(np.mean(np.argmax(scores, axis=-1) == labels))


def write_digits(folder: Path, *, seed: int = SEED, with_cloud: bool = True, with_next: bool = False) -> dict[str, Any]:
    """Train the models and write all files into `folder`. Returns the content of summary.json."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with _step("load TensorFlow"):
        import keras
    folder.mkdir(parents=True, exist_ok=True)
    parts = split(*load_digits_images(seed))
    for name in ("data", "test"):
        np.savez_compressed(folder / f"{name}.npz", x=parts[name][0], y=parts[name][1])
    keras.utils.set_random_seed(seed)
    small, cloud = small_model(), cloud_model()  # both use the seed, so build both even with --no-cloud
    with _step("train digits (device)"):
        train(small, *parts["train"], epochs=SMALL_EPOCHS, rate=2e-3, seed=seed)
        small.save(folder / "digits.keras")
    summary = {"seed": seed, "sizes": {name: len(labels) for name, (_, labels) in parts.items()}, "models": {}}
    _report(summary, "digits", small, parts)
    if with_cloud:
        with _step("train digits-cloud"):
            train(cloud, *augmented(*parts["train"], copies=2, seed=seed), epochs=CLOUD_EPOCHS, rate=3e-3, seed=seed)
            cloud.save(folder / "digits-cloud.keras")
        _report(summary, "digits-cloud", cloud, parts)
    if with_next:
        with _step("train digits-next (one more epoch)"):
            train(small, *parts["train"], epochs=1, rate=5e-4, seed=seed)
            small.save(folder / "digits-next.keras")
        _report(summary, "digits-next", small, parts)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _report(summary: dict[str, Any], name: str, model: Any, parts: dict[str, tuple[Images, Labels]]) -> None:
    result = {"accuracy": accuracy(model, *parts["test"]), "parameters": model.count_params()}
    summary["models"][name] = result
    print(f"{name}: {result['parameters']:,} parameters, accuracy {result['accuracy']:.2%} on {TEST} held-out images")


@contextmanager
def _step(label: str) -> Iterator[None]:
    print(f"{label} ... ", end="", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("digits"), help="folder [default: digits]")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of all random choices [default: {SEED}]")
    parser.add_argument("--no-cloud", action="store_true", help="skip digits-cloud.keras, which takes longest to train")
    parser.add_argument("--next", action="store_true", help="also write digits-next.keras")
    options = parser.parse_args()
    write_digits(options.output, seed=options.seed, with_cloud=not options.no_cloud, with_next=options.next)


if __name__ == "__main__":
    main()

"""Keep half of a Keras model's cost, and train the pruned network with a loop of your own.

`train` below is called with the pruned network as a tf.Module, on the calibration samples that do not judge it. Prints
what recovery did, with the divergence from the float model before and after each step, and the folder of the bundle:

    distilled: 0.0... -> 0.0..., kept (or undone)
    own: 0.0... -> 0.0..., kept (or undone)
    bundle: .../rings-1.0.0-raspberry-pi-4
"""

import os
from pathlib import Path

import numpy as np

from converters import convert


def train(model, samples, labels, seed):
    """Thirty steps towards the labels. `model` is a tf.Module; nothing is returned."""
    import tensorflow as tf

    optimizer = tf.keras.optimizers.Adam(1e-4)
    for _ in range(30):
        with tf.GradientTape() as tape:
            scores = model(samples)["scores"]
            loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(labels, scores))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def save_model(path: Path) -> None:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1), name="image"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*rings(400, seed=1), epochs=6, verbose=0)
    model.save(path)


def rings(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy rings (count, 12, 12, 1) of three widths, which are their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    rows, columns = np.mgrid[-5.5:6, -5.5:6]
    distance = np.hypot(rows, columns)[None] - (2 + labels)[:, None, None]
    images = np.exp(-(distance**2)) + rng.normal(0, 0.3, distance.shape)
    return images[..., None].astype(np.float32), labels


def main() -> None:
    save_model(Path("rings.keras"))
    images, labels = rings(600, seed=2)
    np.savez("rings.npz", x=images, y=labels)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)  # where this module is found
    [report] = convert(
        "rings.keras",
        targets=["raspberry-pi-4"],
        data="rings.npz",
        prune="0.5",
        max_drop=0.1,
        finetune="finetune:train",
    )
    for level in report.channels.recovered:
        for step in level.recovery:
            print(
                f"{step.step}: {step.before:.4f} -> {step.after:.4f}, {'kept' if step.taken else step.note or 'undone'}"
            )
    print(f"bundle: {report.bundle}")


if __name__ == "__main__":
    main()

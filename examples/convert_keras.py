"""Convert a Keras model for a Raspberry Pi 4.

Builds and saves a small network, converts it with samples to calibrate and prove with, and prints one line a
candidate, what was chosen, and where its bundle lies:

    float32: ... bytes, accuracy ..., fits
    float16: ... bytes, accuracy ..., chosen (or fits)
    int8: ... bytes, accuracy ..., chosen (or unproven)
    bundle: .../blobs-1.0.0-raspberry-pi-4
"""

from pathlib import Path

import numpy as np

from converters import convert


def save_model(path: Path) -> None:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1), name="image"),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax", name="scores"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(*blobs(200, seed=1), epochs=6, verbose=0)
    model.save(path)


def blobs(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark (0) and light (1) images of noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    light = 0.3 + 0.4 * labels[:, None, None, None]
    return np.clip(light + rng.normal(0, 0.2, (count, 12, 12, 1)), 0, 1).astype(np.float32), labels


def main() -> None:
    save_model(Path("blobs.keras"))
    images, labels = blobs(500, seed=2)
    np.savez("blobs.npz", x=images, y=labels)
    [report] = convert("blobs.keras", targets=["raspberry-pi-4"], data="blobs.npz")
    for candidate in report.candidates:
        quality = candidate.quality.value if candidate.quality else float("nan")
        print(f"{candidate.id}: {candidate.bytes} bytes, accuracy {quality:.4f}, {candidate.verdict}")
    print(f"bundle: {report.bundle}")


if __name__ == "__main__":
    main()

"""Convert a Keras model for a Raspberry Pi 4.

Builds and saves a small network, and converts it with samples for calibration and for the proof of its quality. Prints
one line per candidate, with the chosen one, and the folder of the bundle:

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
    """Noisy images (count, 12, 12, 1) with their labels: 0 for dark, 1 for light."""
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

import subprocess
import sys

import pytest

from converters.framework_process import TensorFlowProcess
from tests.simulators import models

KERAS = """
import sys, numpy as np, keras
from keras import layers
keras.utils.set_random_seed(4)
image = keras.Input((12, 12, 1), name="image")
x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image))
x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
x = layers.Add()([x, layers.Conv2D(8, 1)(x)])
x = layers.Dense(3, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
model = keras.Model(image, x)
rng = np.random.default_rng(5)
labels = rng.integers(0, 3, 600)
images = np.clip(0.2 + 0.3 * labels[:, None, None, None] + rng.normal(0, 0.1, (600, 12, 12, 1)), 0, 1).astype("float32")
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
model.fit(images, labels, epochs=4, verbose=0)
folder = sys.argv[1]
model.save(folder + "/tiny.keras")
model.save(folder + "/tiny.h5")
model.export(folder + "/tiny_saved", verbose=False)
dense = [keras.Input((12, 12, 1), name="image"), layers.Flatten(), layers.Dense(4, name="last")]
keras.Sequential(dense).save(folder + "/sequential.keras")
shared = layers.Dense(2, name="shared")
left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
keras.Model([left, right], [shared(left), shared(right)]).save(folder + "/siamese.keras")
keras.Sequential([keras.Input((2,)), layers.Lambda(lambda v: v * 2, name="twice")]).save(folder + "/lambda.keras")
keras.Sequential([keras.Input((2,)), layers.Lambda(lambda v: v * 2, name="twice")]).save(folder + "/lambda.h5")
steps = keras.Input((6, 3), name="steps")
keras.Model(steps, layers.Dense(2)(layers.LSTM(4, name="memory")(steps))).save(folder + "/lstm.keras")
flat = keras.Input((4,), name="flat")
keras.Model(flat, layers.Dense(3, activation="gelu", name="gelu")(flat)).save(folder + "/gelu.keras")
scaled = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16], name="standardize")(flat)
keras.Model(flat, layers.Dense(3)(scaled)).save(folder + "/standardized.keras")
square = layers.Reshape((2, 2))(layers.Dense(4)(flat))
keras.Model(flat, layers.Reshape((1,))(keras.ops.det(square))).save(folder + "/determinant.keras")
old = keras.Input((8, 8, 2), name="old")
x = layers.SeparableConv2D(4, 3)(layers.DepthwiseConv2D(3, name="deep")(old))
keras.Model(old, layers.Conv2DTranspose(2, 3, name="up")(x)).save(folder + "/groups.h5")
import h5py, json
with h5py.File(folder + "/groups.h5", "a") as file:
    config = json.loads(file.attrs["model_config"])
    for entry in config["config"]["layers"]:
        if "Conv" in entry["class_name"]:
            entry["config"]["groups"] = 1
    file.attrs["model_config"] = json.dumps(config)
    file.attrs["keras_version"] = "2.15.0"
np.savez(folder + "/data.npz", x=images[:500], y=labels[:500])
np.savez(folder + "/test.npz", x=images[500:], y=labels[500:])
"""


@pytest.fixture(scope="session")
def keras_folder(tmp_path_factory):
    """Models made by Keras in another process, so that this process does not import TensorFlow."""
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run([sys.executable, "-c", KERAS, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def child():
    with TensorFlowProcess() as child:
        yield child


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory):
    """A classifier in ONNX, and its data."""
    folder = tmp_path_factory.mktemp("onnx")
    model = models.classifier()
    models.saved(model, folder / "model.onnx")
    models.labelled_data(folder / "data.npz")
    models.labelled_data(folder / "test.npz", rows=50, seed=9)
    return folder

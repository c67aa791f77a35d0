"""Networks of the benchmark `wild` that are written down here, in Keras, with a fixed seed.

`python -m benchmarks.wild_networks NAME FOLDER` writes ``model.keras`` into FOLDER. `minilm` reads its weights from
``model.safetensors`` in FOLDER.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
TOKENS, VOCABULARY = 64, 1000  # of the encoder and the decoder that are made here


def main() -> None:
    """Write one network."""
    import keras

    name, folder = sys.argv[1], Path(sys.argv[2])
    keras.utils.set_random_seed(SEED)
    model = NETWORKS[name](folder) if name == "minilm" else NETWORKS[name]()
    _settle(model)
    model.save(folder / "model.keras")


def _settle(model: Any) -> None:
    """Give batch normalizations the statistics of plausible images, as a training would; random ones fit nothing."""
    import keras

    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers) and len(model.inputs) == 1:
        rows = np.random.default_rng(SEED).uniform(0, 1, (8, *model.inputs[0].shape[1:])).astype(np.float32)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.5
        for _ in range(8):
            model(rows, training=True)


def application(name: str, size: int) -> Callable[[], Any]:
    """One of keras.applications with random weights, for images of `size` pixels with values from 0 to 1."""

    def make() -> Any:
        import keras

        source = getattr(keras.applications, name)
        known = {} if name == "ResNet50V2" else {"include_preprocessing": False}
        return source(input_shape=(size, size, 3), weights=None, classes=1000, **known)

    return make


def _conv(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
    from keras import layers

    x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def unet() -> Any:
    """A U-Net with three levels for 64x64 images, and a mask as its output."""
    from keras import Input, Model, layers

    image = Input((64, 64, 3), name="image")
    first = _conv(_conv(image, 16), 16)
    second = _conv(layers.MaxPooling2D()(first), 32)
    x = _conv(layers.MaxPooling2D()(second), 64)
    x = _conv(layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(x), second]), 32)
    x = layers.Conv2DTranspose(16, 2, strides=2, padding="same")(x)
    x = _conv(layers.Concatenate()([x, first]), 16)
    return Model(image, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x), name="unet")


def ssd() -> Any:
    """A single-shot detector: boxes in pixels, and scores, on two scales, of 96x96 images."""
    from keras import Input, Model, layers

    image = Input((96, 96, 3), name="image")
    x = _conv(_conv(_conv(image, 16, 2), 32, 2), 48, 2)
    maps = [x, _conv(x, 64, 2)]
    boxes, scores = [], []
    for level in maps:
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(3 * 4, 3, padding="same")(level)))
        scores.append(layers.Reshape((-1, 5))(layers.Conv2D(3 * 5, 3, padding="same")(level)))
    pixels = layers.Rescaling(96.0, name="boxes")(layers.Concatenate(axis=1)(boxes))
    classes = layers.Activation("sigmoid", name="scores")(layers.Concatenate(axis=1)(scores))
    return Model(image, [pixels, classes], name="ssd")


def audio() -> Any:
    """One-dimensional convolutions and a GRU, for 40 features of 64 steps."""
    from keras import Input, Model, layers

    features = Input((64, 40), name="features")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(48, 5, strides=2, padding="same")(features)))
    x = layers.GRU(32)(x)
    return Model(features, layers.Dense(8, activation="softmax", name="scores")(x), name="audio")


def _block(x: Any, mask: Any, width: int, heads: int, *, causal: bool, name: str) -> Any:
    """A transformer layer with the normalization behind each sum, as in BERT."""
    from keras import layers

    attention = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")
    seen = attention(x, x, attention_mask=mask, use_causal_mask=causal)
    x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm1")(x + seen)
    inner = layers.Dense(4 * width, activation="gelu", name=f"{name}_inner")(x)
    return layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm2")(
        x + layers.Dense(width, name=f"{name}_outer")(inner)
    )


def encoder(
    vocabulary: int = VOCABULARY, width: int = 64, heads: int = 4, depth: int = 4, positions: Any = None
) -> Any:
    """A BERT-like encoder: the mean of the last layer over the tokens that the mask keeps, of length 1.

    `positions` (tokens, width) is added to the embeddings of the words; None adds random values.
    """
    from keras import Input, Model, layers, ops

    if positions is None:
        positions = layers.Embedding(TOKENS, width)(ops.arange(TOKENS))
    tokens = len(positions)
    ids = Input((tokens,), dtype="int32", name="input_ids")
    mask = Input((tokens,), dtype="int32", name="attention_mask")
    x = layers.Embedding(vocabulary, width, name="words")(ids) + positions
    x = layers.LayerNormalization(epsilon=1e-12, name="norm")(x)
    kept = layers.Reshape((1, tokens))(mask)
    for index in range(depth):
        x = _block(x, kept, width, heads, causal=False, name=f"layer{index}")
    weights = layers.Reshape((tokens, 1))(ops.cast(mask, "float32"))
    mean = ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)
    unit = layers.UnitNormalization(name="embedding")(mean)
    return Model([ids, mask], unit, name="encoder")


def decoder() -> Any:
    """Two GPT-like blocks with causal attention, and scores for the next token at each position."""
    from keras import Input, Model, layers, ops

    ids = Input((TOKENS,), dtype="int32", name="input_ids")
    x = layers.Embedding(VOCABULARY, 64)(ids) + layers.Embedding(TOKENS, 64)(ops.arange(TOKENS))
    for index in range(2):
        x = _block(x, None, 64, 4, causal=True, name=f"block{index}")
    return Model(ids, layers.Dense(VOCABULARY, name="logits")(x), name="decoder")


def minilm(folder: Path) -> Any:
    """all-MiniLM-L6-v2 with its own weights, for 128 tokens."""
    width, heads, depth = 384, 12, 6
    weights = read_safetensors(folder / "model.safetensors")
    kinds = weights["embeddings.token_type_embeddings.weight"][0]  # every token has the first kind
    positions = weights["embeddings.position_embeddings.weight"][:128] + kinds
    model = encoder(30522, width, heads, depth, positions)

    def give(layer: str, *values: Any) -> None:
        model.get_layer(layer).set_weights(list(values))

    def norm(layer: str, name: str) -> None:
        give(layer, weights[f"{name}.weight"], weights[f"{name}.bias"])

    give("words", weights["embeddings.word_embeddings.weight"])
    norm("norm", "embeddings.LayerNorm")
    for index in range(depth):
        of = f"encoder.layer.{index}."
        parts: list[Any] = []
        for part in ("query", "key", "value"):
            kernel, bias = (weights[f"{of}attention.self.{part}.{kind}"] for kind in ("weight", "bias"))
            parts += [kernel.T.reshape(width, heads, -1), bias.reshape(heads, -1)]
        out = weights[f"{of}attention.output.dense.weight"].T.reshape(heads, -1, width)
        give(f"layer{index}_attention", *parts, out, weights[f"{of}attention.output.dense.bias"])
        norm(f"layer{index}_norm1", f"{of}attention.output.LayerNorm")
        for layer, name in (("inner", "intermediate.dense"), ("outer", "output.dense")):
            give(f"layer{index}_{layer}", weights[f"{of}{name}.weight"].T, weights[f"{of}{name}.bias"])
        norm(f"layer{index}_norm2", f"{of}output.LayerNorm")
    return model


def read_safetensors(path: Path) -> dict[str, Any]:
    """The float32 and float16 tensors of a file, as float32, by name."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in ("F32", "F16"):
            continue
        dtype = np.float32 if entry["dtype"] == "F32" else np.float16
        first, last = entry["data_offsets"]
        values = np.frombuffer(data, dtype, (last - first) // np.dtype(dtype).itemsize, start + first)
        found[name] = values.reshape(entry["shape"]).astype(np.float32)
    return found


NETWORKS: dict[str, Callable[..., Any]] = {
    "mobilenet-v3-small": application("MobileNetV3Small", 128),
    "efficientnet-v2-b0": application("EfficientNetV2B0", 128),
    "resnet50-v2": application("ResNet50V2", 128),
    "convnext-tiny": application("ConvNeXtTiny", 128),
    "unet": unet,
    "ssd": ssd,
    "audio": audio,
    "encoder": encoder,
    "decoder": decoder,
    "minilm": minilm,
}


if __name__ == "__main__":
    main()

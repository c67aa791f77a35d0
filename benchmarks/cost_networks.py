"""Networks whose files' instructions are counted, in Keras: small ones of the usual kinds, with random weights.

`python -m benchmarks.cost_networks FOLDER [NAME ...]` writes ``NAME.keras`` for each into FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 11


def _conv(x: Any, filters: int, size: int = 3, stride: int = 1, activation: str = "relu") -> Any:
    from keras import layers

    return layers.Conv2D(filters, size, strides=stride, padding="same", activation=activation)(x)


def _separable(x: Any, filters: int, stride: int = 1, size: int = 3, activation: str = "relu") -> Any:
    from keras import layers

    x = layers.DepthwiseConv2D(size, strides=stride, padding="same", activation=activation)(x)
    return _conv(x, filters, 1, activation=activation)


def _head(x: Any, classes: int) -> Any:
    from keras import layers

    return layers.Dense(classes, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def mlp(inputs: int, *widths: int, last: int, activation: str = "relu") -> Callable[[], Any]:
    """A dense network."""

    def make() -> Any:
        from keras import Input, Model, layers

        x = first = Input((inputs,))
        for width in widths:
            x = layers.Dense(width, activation=activation)(x)
        return Model(first, layers.Dense(last)(x))

    return make


def keyword_spotter() -> Any:
    """The separable network of MLPerf Tiny's keyword spotting."""
    from keras import Input, Model

    x = first = Input((49, 10, 1))
    x = _conv(x, 64, (10, 4), 2)  # type: ignore[arg-type]
    for _ in range(4):
        x = _separable(x, 64)
    return Model(first, _head(x, 12))


def mobile() -> Any:
    """MobileNet v1 at a quarter of its width, for 64x64 images."""
    from keras import Input, Model

    x = first = Input((64, 64, 3))
    x = _conv(x, 8, 3, 2)
    for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2)):
        x = _separable(x, filters, stride)
    return Model(first, _head(x, 10))


def mobile2() -> Any:
    """Inverted residual blocks of MobileNet v2, for 48x48 images."""
    from keras import Input, Model, layers

    x = first = Input((48, 48, 3))
    x = _conv(x, 16, 3, 2, "relu6")
    for filters, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1)):
        seen = x
        x = _conv(x, 6 * x.shape[-1], 1, activation="relu6")
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", activation="relu6")(x)
        x = layers.Conv2D(filters, 1)(x)
        x = layers.Add()([x, seen]) if seen.shape == x.shape else x
    return Model(first, _head(_conv(x, 128, 1, activation="relu6"), 20))


def mobile3() -> Any:
    """Separable blocks with squeeze-and-excitation and hard swish, as in MobileNet v3, for 56x56 images."""
    from keras import Input, Model, layers

    x = first = Input((56, 56, 3))
    x = _conv(x, 16, 3, 2, "hard_swish")
    for filters, stride, size in ((16, 2, 3), (24, 2, 3), (32, 1, 5), (48, 2, 5)):
        x = _conv(x, 3 * x.shape[-1], 1, activation="hard_swish")
        x = layers.DepthwiseConv2D(size, strides=stride, padding="same", activation="hard_swish")(x)
        scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
        scale = _conv(_conv(scale, x.shape[-1] // 4, 1), x.shape[-1], 1, activation="hard_sigmoid")
        x = layers.Conv2D(filters, 1)(layers.Multiply()([x, scale]))
    return Model(first, _head(x, 10))


def residual() -> Any:
    """The residual network of MLPerf Tiny's image classification."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    x = _conv(x, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(filters, 3, padding="same")(_conv(x, filters, 3, stride))
        x = x if stride == 1 else layers.Conv2D(filters, 1, strides=2)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return Model(first, _head(x, 10))


def bottleneck() -> Any:
    """Bottleneck residual blocks, for 56x56 images."""
    from keras import Input, Model, layers

    x = first = Input((56, 56, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(_conv(x, 16, 7, 2))
    for filters, stride in ((16, 1), (24, 2), (32, 2)):
        y = layers.Conv2D(4 * filters, 1)(_conv(_conv(x, filters, 1), filters, 3, stride))
        x = layers.ReLU()(layers.Add()([layers.Conv2D(4 * filters, 1, strides=stride)(x), y]))
    return Model(first, _head(x, 10))


def unet() -> Any:
    """A U-Net with two levels, for 32x32 images."""
    from keras import Input, Model, layers

    image = Input((32, 32, 3))
    one = _conv(_conv(image, 8), 8)
    two = _conv(layers.MaxPooling2D()(one), 16)
    x = _conv(layers.MaxPooling2D()(two), 32)
    x = _conv(layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(x), two]), 16)
    x = layers.Conv2DTranspose(8, 2, strides=2, padding="same")(x)
    x = _conv(layers.Concatenate()([x, one]), 8)
    return Model(image, layers.Conv2D(1, 1, activation="sigmoid")(x))


def detector() -> Any:
    """A single-shot detector with two scales, for 64x64 images."""
    from keras import Input, Model, layers

    image = Input((64, 64, 3))
    x = _conv(_conv(_conv(image, 12, 3, 2), 24, 3, 2), 32, 3, 2)
    boxes, scores = [], []
    for level in (x, _conv(x, 48, 3, 2)):
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(3 * 4, 3, padding="same")(level)))
        scores.append(layers.Reshape((-1, 5))(layers.Conv2D(3 * 5, 3, padding="same")(level)))
    pixels = layers.Rescaling(64.0)(layers.Concatenate(axis=1)(boxes))
    return Model(image, [pixels, layers.Activation("sigmoid")(layers.Concatenate(axis=1)(scores))])


def _attention(x: Any, width: int, heads: int) -> Any:
    from keras import layers

    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(heads, width // heads)(x, x))
    inner = layers.Dense(2 * width, activation="gelu")(x)
    return layers.LayerNormalization()(x + layers.Dense(width)(inner))


def encoder(steps: int, width: int, heads: int, depth: int) -> Callable[[], Any]:
    """A transformer encoder over vectors."""

    def make() -> Any:
        from keras import Input, Model, layers

        first = Input((steps, width // 2))
        x = layers.Dense(width)(first)
        for _ in range(depth):
            x = _attention(x, width, heads)
        return Model(first, layers.Dense(6)(layers.GlobalAveragePooling1D()(x)))

    return make


def vision_transformer() -> Any:
    """Patches of 32x32 images and two transformer blocks."""
    from keras import Input, Model, layers

    image = Input((32, 32, 3))
    x = layers.Reshape((16, 48))(layers.Conv2D(48, 8, strides=8)(image))
    for _ in range(2):
        x = _attention(x, 48, 4)
    return Model(image, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def mixer() -> Any:
    """Blocks of an MLP mixer, for 16 patches of 32 values."""
    from keras import Input, Model, layers

    x = first = Input((16, 32))
    for _ in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(32, activation="gelu")(y)))
        x = x + y
        x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x)))
    return Model(first, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def recurrent(kind: str, steps: int, features: int, units: int, *, both: bool = False) -> Callable[[], Any]:
    """One recurrent layer and a dense one."""

    def make() -> Any:
        from keras import Input, Model, layers

        first = Input((steps, features))
        layer = getattr(layers, kind)(units)
        return Model(first, layers.Dense(4)((layers.Bidirectional(layer) if both else layer)(first)))

    return make


def transposed() -> Any:
    """An autoencoder of strided and transposed convolutions, for 32x32 images."""
    from keras import Input, Model, layers

    x = image = Input((32, 32, 1))
    for filters in (8, 16, 24):
        x = _conv(x, filters, 3, 2)
    for filters in (16, 8):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
    return Model(image, layers.Conv2DTranspose(1, 4, strides=2, padding="same")(x))


def audio() -> Any:
    """One-dimensional convolutions, for 256 samples of 4 channels."""
    from keras import Input, Model, layers

    x = first = Input((256, 4))
    for filters in (16, 24, 32):
        x = layers.Conv1D(filters, 5, strides=2, padding="same", activation="relu")(x)
    return Model(first, layers.Dense(6, activation="softmax")(layers.GlobalMaxPooling1D()(x)))


def temporal() -> Any:
    """Dilated one-dimensional convolutions with residual connections, for 64 steps."""
    from keras import Input, Model, layers

    first = Input((64, 8))
    x = layers.Conv1D(24, 1)(first)
    for dilation in (1, 2, 4):
        y = layers.Conv1D(24, 3, dilation_rate=dilation, padding="same", activation="relu")(x)
        x = x + layers.Conv1D(24, 1)(y)
    return Model(first, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def squeeze() -> Any:
    """Fire modules of SqueezeNet, for 40x40 images."""
    from keras import Input, Model, layers

    x = first = Input((40, 40, 3))
    x = layers.MaxPooling2D(3, 2)(_conv(x, 24, 3, 2))
    for small, large in ((8, 24), (8, 24), (12, 32)):
        x = _conv(x, small, 1)
        x = layers.Concatenate()([_conv(x, large, 1), _conv(x, large, 3)])
    return Model(first, layers.Softmax()(layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1)(x))))


def dense_blocks() -> Any:
    """Concatenated blocks of DenseNet with average pools, for 32x32 images."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    x = _conv(x, 16, 3, 2)
    for _ in range(2):
        for _ in range(3):
            x = layers.Concatenate()([x, _conv(_conv(x, 24, 1), 8)])
        x = layers.AveragePooling2D(2)(_conv(x, 24, 1))
    return Model(first, _head(x, 10))


def efficient() -> Any:
    """Swish and squeeze-and-excitation blocks of EfficientNet, for 40x40 images."""
    from keras import Input, Model, layers

    x = first = Input((40, 40, 3))
    x = _conv(x, 16, 3, 2, "silu")
    for filters, stride in ((16, 1), (24, 2), (40, 2)):
        x = _conv(x, 4 * x.shape[-1], 1, activation="silu")
        x = layers.DepthwiseConv2D(5, strides=stride, padding="same", activation="silu")(x)
        scale = _conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 8, 1, activation="silu")
        x = layers.Multiply()([x, _conv(scale, x.shape[-1], 1, activation="sigmoid")])
        x = layers.Conv2D(filters, 1)(x)
    return Model(first, _head(x, 10))


def lenet() -> Any:
    """LeNet with max pools and dense layers, for 28x28 images."""
    from keras import Input, Model, layers

    x = first = Input((28, 28, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(6, 5, padding="same", activation="relu")(x))
    x = layers.Flatten()(layers.MaxPooling2D()(layers.Conv2D(16, 5, activation="relu")(x)))
    return Model(first, layers.Dense(10)(layers.Dense(84, activation="relu")(layers.Dense(120, activation="relu")(x))))


def large_head() -> Any:
    """Few convolutions and dense layers of 2.6 million weights, more than a cache holds, for 32x32 images."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    x = layers.Flatten()(_conv(_conv(x, 16, 3, 2), 32, 3, 2))
    return Model(first, layers.Dense(100)(layers.Dense(1024, activation="relu")(x)))


def hourglass() -> Any:
    """An hourglass that adds nearest-neighbour upsampled maps, with heat maps as its output, for 32x32 images."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    x = _conv(x, 16)
    skip = _conv(x, 16, 1)
    x = _conv(_conv(layers.MaxPooling2D()(x), 24), 16)
    x = layers.Add()([layers.UpSampling2D()(x), skip])
    return Model(first, layers.Conv2D(5, 1)(_conv(x, 16)))


def grouped() -> Any:
    """Grouped convolutions, for 32x32 images."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    x = _conv(x, 32, 3, 2)
    for _ in range(2):
        x = layers.Conv2D(32, 3, padding="same", groups=4, activation="relu")(x)
        x = _conv(x, 32, 1)
    return Model(first, _head(x, 10))


def siamese() -> Any:
    """Two inputs with shared convolutions and the distance of their embeddings."""
    from keras import Input, Model, Sequential, layers

    left, right = Input((24, 24, 1)), Input((24, 24, 1))
    body = Sequential([
        layers.Conv2D(12, 3, strides=2, activation="relu"), layers.Conv2D(24, 3, strides=2, activation="relu"),
        layers.Flatten(), layers.Dense(16),
    ])  # fmt: skip
    distance = layers.Subtract()([body(left), body(right)])
    return Model([left, right], layers.Dense(1, activation="sigmoid")(layers.Multiply()([distance, distance])))


def sound_events() -> Any:
    """Convolutions, then an LSTM over their columns."""
    from keras import Input, Model, layers

    x = first = Input((32, 16, 1))
    x = layers.Reshape((8, 64))(_conv(_conv(x, 8, 3, 2), 16, 3, 2))
    return Model(first, layers.Dense(5, activation="softmax")(layers.LSTM(24)(x)))


def leaky() -> Any:
    """A small discriminator with leaky and parametric rectifiers and a tanh."""
    from keras import Input, Model, layers

    x = first = Input((32, 32, 3))
    for filters in (12, 24, 32):
        x = layers.LeakyReLU(negative_slope=0.2)(layers.Conv2D(filters, 4, strides=2, padding="same")(x))
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(32, 3, padding="same")(x))
    return Model(first, layers.Dense(1, activation="tanh")(layers.Flatten()(x)))


def generator() -> Any:
    """A generator of transposed convolutions over a dense layer, for images of 16x16."""
    from keras import Input, Model, layers

    first = Input((24,))
    x = layers.Reshape((4, 4, 16))(layers.Dense(256, activation="relu")(first))
    x = layers.Conv2DTranspose(12, 4, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(8, 4, strides=2, padding="same", activation="relu")(x)
    return Model(first, layers.Conv2D(3, 3, padding="same", activation="sigmoid")(x))


def pyramid() -> Any:
    """A feature pyramid that adds nearest-neighbour upsampled maps on two levels, for 48x48 images."""
    from keras import Input, Model, layers

    x = first = Input((48, 48, 3))
    levels = []
    for filters in (8, 16, 32):
        x = _conv(x, filters, 3, 2)
        levels.append(layers.Conv2D(24, 1)(x))
    top = levels[2]
    for level in (levels[1], levels[0]):
        top = layers.Add()([layers.UpSampling2D()(top), level])
    return Model(first, layers.Conv2D(4, 1, activation="sigmoid")(_conv(top, 24)))


def causal() -> Any:
    """Gated causal convolutions of growing dilation, as in WaveNet, for 96 steps."""
    from keras import Input, Model, layers

    first = Input((96, 6))
    x = layers.Conv1D(16, 1)(first)
    for dilation in (1, 2, 4, 8):
        gate = layers.Conv1D(16, 2, dilation_rate=dilation, padding="causal", activation="sigmoid")(x)
        value = layers.Conv1D(16, 2, dilation_rate=dilation, padding="causal", activation="tanh")(x)
        x = x + layers.Conv1D(16, 1)(layers.Multiply()([gate, value]))
    return Model(first, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def swish() -> Any:
    """Separable blocks with squeeze-and-excitation and swish, for 64x64 images."""
    from keras import Input, Model, layers

    x = first = Input((64, 64, 1))
    x = _conv(x, 12, 3, 2, "silu")
    for filters, stride, size in ((20, 2, 3), (20, 1, 3), (36, 2, 5)):
        seen = x
        x = layers.DepthwiseConv2D(size, strides=stride, padding="same", activation="silu")(x)
        scale = _conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 6, 1, activation="silu")
        x = layers.Multiply()([x, _conv(scale, x.shape[-1], 1, activation="sigmoid")])
        x = layers.Conv2D(filters, 1)(x)
        x = layers.Add()([x, seen]) if seen.shape == x.shape else x
    return Model(first, _head(x, 8))


def denoiser() -> Any:
    """A convolutional autoencoder whose last transposed convolution makes one channel, for 24x24 images."""
    from keras import Input, Model, layers

    first = Input((24, 24, 1))
    x = _conv(_conv(first, 12, 3, 2), 24, 3, 2)
    x = layers.Conv2DTranspose(12, 3, strides=2, padding="same", activation="relu")(x)
    return Model(first, layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(x))


def sound_gru() -> Any:
    """One-dimensional convolutions, then a GRU, for 120 samples of 6 channels."""
    from keras import Input, Model, layers

    x = first = Input((120, 6))
    for filters in (12, 20):
        x = layers.Conv1D(filters, 5, strides=3, padding="same", activation="relu")(x)
    return Model(first, layers.Dense(3, activation="softmax")(layers.GRU(20)(x)))


def decoder() -> Any:
    """A causal transformer decoder of one block over 20 vectors of 48 values."""
    from keras import Input, Model, layers

    x = first = Input((20, 48))
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, 12)(y, y, use_causal_mask=True)
    y = layers.Dense(96, activation="gelu")(layers.LayerNormalization()(x))
    return Model(first, layers.Dense(40)(layers.LayerNormalization()(x + layers.Dense(48)(y))))


NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp-tiny": mlp(16, 32, 16, last=4),
    "mlp-small": mlp(64, 128, 64, last=10),
    "mlp-tanh": mlp(24, 48, 48, last=2, activation="tanh"),
    "mlp-wide": mlp(256, 512, 256, last=10),
    "anomaly": mlp(640, 128, 128, 8, 128, 128, last=640),
    "keywords": keyword_spotter,
    "mobile": mobile,
    "mobile2": mobile2,
    "mobile3": mobile3,
    "residual": residual,
    "bottleneck": bottleneck,
    "unet": unet,
    "detector": detector,
    "encoder": encoder(24, 32, 4, 2),
    "encoder-wide": encoder(16, 96, 6, 1),
    "vision-transformer": vision_transformer,
    "mixer": mixer,
    "lstm": recurrent("LSTM", 16, 12, 24),
    "gru": recurrent("GRU", 16, 20, 32),
    "lstm-both": recurrent("LSTM", 10, 8, 16, both=True),
    "transposed": transposed,
    "audio": audio,
    "temporal": temporal,
    "squeeze": squeeze,
    "dense-blocks": dense_blocks,
    "efficient": efficient,
    "lenet": lenet,
    "large-head": large_head,
    "hourglass": hourglass,
    "grouped": grouped,
    "siamese": siamese,
    "sound-events": sound_events,
    "leaky": leaky,
    "policy": mlp(12, 64, 64, 32, last=3, activation="tanh"),
    "mlp-least": mlp(6, 24, last=2),
    "mlp-deep": mlp(100, 64, 64, 64, 64, last=20),
    "gru-small": recurrent("GRU", 24, 8, 16),
    "gru-both": recurrent("GRU", 8, 12, 20, both=True),
    "lstm-long": recurrent("LSTM", 30, 6, 20),
    "generator": generator,
    "pyramid": pyramid,
    "causal": causal,
    "swish": swish,
    "sound-gru": sound_gru,
    "decoder": decoder,
    "denoiser": denoiser,
    "encoder-long": encoder(32, 32, 4, 1),
}


def main() -> None:
    """Write the networks."""
    import keras

    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or NETWORKS:
        keras.utils.set_random_seed(SEED)
        NETWORKS[name]().save(folder / f"{name}.keras")


if __name__ == "__main__":
    main()

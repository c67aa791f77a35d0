"""Networks of many layers of one kind beside each other, in many sizes: their counts show what a kernel costs.

`python -m benchmarks.cost_layers FOLDER` writes ``micro-NAME.keras`` for each into FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SEED = 5
SHAPES = ((10,), (40, 40), (9, 31), (200, 64), (7, 7, 24))
NORMALIZED = (*SHAPES, (5, 128), (64, 16), (12, 300))

Layers = Callable[[Any], list[Any]]


def _network(shapes: Sequence[tuple[int, ...]], layers: Layers) -> Any:
    """All of `layers` on an input of each shape."""
    from keras import Input, Model

    inputs = [Input(shape) for shape in shapes]
    return Model(inputs, [out for one in inputs for out in layers(one)])


def transposed() -> Any:
    """Transposed convolutions."""
    from keras import layers

    def made(x: Any) -> list[Any]:
        sizes = {12: ((4, 2, 2), (16, 3, 2), (7, 3, 1)), 5: ((8, 2, 2), (12, 4, 2), (1, 4, 2), (16, 3, 2))}
        many = ((24, 3, 2), (16, 2, 2), (8, 4, 4), (3, 5, 2), (40, 3, 1))
        return [
            layers.GlobalMaxPooling2D()(layers.Conv2DTranspose(filters, size, strides=stride, padding="same")(x))
            for filters, size, stride in sizes.get(x.shape[-1], many)
        ]

    return _network(((8, 8, 12), (16, 16, 5), (4, 4, 32)), made)


def dense() -> Any:
    """Dense layers on one row."""
    from keras import layers

    return _network(((8,), (24,), (100,), (320,)), lambda x: [layers.Dense(n)(x) for n in (1, 6, 16, 40, 130)])


def rows() -> Any:
    """Dense layers on several rows."""
    from keras import layers

    shapes = ((3, 10), (5, 32), (9, 20), (20, 48), (50, 24), (7, 64))
    return _network(shapes, lambda x: [layers.GlobalMaxPooling1D()(layers.Dense(n)(x)) for n in (5, 16, 40, 72)])


def conv() -> Any:
    """Convolutions."""
    from keras import layers

    sizes = ((5, 3, 1), (12, 3, 2), (24, 1, 1), (40, 5, 1), (16, 1, 2), (9, 2, 2), (8, 7, 1))
    return _network(
        ((6, 6, 4), (9, 9, 12), (14, 14, 3), (5, 5, 40)),
        lambda x: [
            layers.GlobalMaxPooling2D()(layers.Conv2D(filters, size, strides=stride, padding="same")(x))
            for filters, size, stride in sizes
        ],
    )


def depthwise() -> Any:
    """Depthwise convolutions."""
    from keras import layers

    sizes = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))
    return _network(
        ((6, 6, 4), (9, 9, 12), (14, 14, 20), (5, 5, 40), (20, 20, 9)),
        lambda x: [
            layers.GlobalMaxPooling2D()(layers.DepthwiseConv2D(size, strides=stride, padding="same")(x))
            for size, stride in sizes
        ],
    )


def matmul() -> Any:
    """Products of two inputs."""
    from keras import Input, Model, ops

    sizes = (
        (1, 8, 16, 8), (2, 10, 12, 10), (4, 16, 8, 16), (4, 20, 16, 33),
        (8, 6, 24, 6), (3, 32, 40, 20), (1, 5, 64, 50), (2, 48, 10, 48),
    )  # fmt: skip
    inputs, outputs = [], []
    for batch, rows_, depth, columns in sizes:
        first, second = Input((batch, rows_, depth)), Input((batch, depth, columns))
        third = Input((batch, columns, depth))
        inputs += [first, second, third]
        outputs.append(ops.max(ops.matmul(first, second), axis=-1))
        outputs.append(ops.max(ops.matmul(first, ops.transpose(third, (0, 1, 3, 2))), axis=-1))
    return Model(inputs, outputs)


def smooth() -> Any:
    """Activations with exponentials."""
    from keras import layers, ops

    names = ("sigmoid", "tanh", "gelu", "softmax")
    return _network(SHAPES, lambda x: [ops.max(layers.Activation(name)(x), axis=-1) for name in names])


def pieces() -> Any:
    """Activations of pieces."""
    from keras import layers, ops

    def made(x: Any) -> list[Any]:
        found = [layers.Activation(name)(x) for name in ("hard_swish", "hard_sigmoid")]
        found.append(layers.LeakyReLU(negative_slope=0.2)(x))
        found += [layers.Activation(name)(x) for name in ("relu6", "elu", "silu")]
        return [ops.max(one, axis=-1) for one in found]

    return _network(SHAPES, made)


def norms() -> Any:
    """Layer normalizations."""
    from keras import layers, ops

    return _network(NORMALIZED, lambda x: [ops.max(layers.LayerNormalization()(x), axis=-1)])


def pairs() -> Any:
    """Operators on two tensors."""
    from keras import Input, Model, ops

    inputs, outputs = [], []
    for shape in SHAPES:
        x, y, z = Input(shape), Input(shape), Input((*shape[:-1], 1))
        inputs += [x, y, z]
        outputs += [ops.max(one, axis=-1) for one in (x + y, x * y, x - y, ops.maximum(x, y), x * z, x + z)]
    return Model(inputs, outputs)


def moves() -> Any:
    """Pools, resizing, slices and other operators that mostly move values."""
    from keras import layers, ops

    def made(x: Any) -> list[Any]:
        found = [layers.MaxPooling2D()(x), layers.MaxPooling2D(3, 2, padding="same")(x), layers.AveragePooling2D(2)(x)]
        found += [layers.UpSampling2D()(x), layers.UpSampling2D(interpolation="bilinear")(x)]
        found += [layers.Concatenate()([x, x * 2.0]), layers.ZeroPadding2D(2)(x), x[:, 1:-2, ::2, :]]
        found += [ops.transpose(x, (0, 3, 1, 2)), ops.transpose(x, (0, 2, 1, 3)), layers.Cropping2D(1)(x)]
        ends = [layers.GlobalAveragePooling2D()(x), ops.sum(x, axis=-1)[:, 0]]
        return [ops.max(one, axis=(1, 2, 3)) for one in found] + ends

    return _network(((8, 8, 6), (12, 12, 16), (24, 24, 8), (16, 16, 40)), made)


def recurrent() -> Any:
    """LSTMs and GRUs."""
    from keras import Input, Model, layers

    inputs, outputs = [], []
    for steps, features, units in ((4, 8, 16), (6, 30, 12), (3, 16, 40), (5, 4, 8), (4, 40, 64)):
        inputs.append(Input((steps, features)))
        outputs += [layers.LSTM(units)(inputs[-1]), layers.GRU(units)(inputs[-1])]
    return Model(inputs, outputs)


NETWORKS = (transposed, dense, rows, conv, depthwise, matmul, smooth, pieces, norms, pairs, moves, recurrent)


def main() -> None:
    """Write the networks."""
    import keras

    for build in NETWORKS:
        keras.utils.set_random_seed(SEED)
        build().save(Path(sys.argv[1]) / f"micro-{build.__name__}.keras")


if __name__ == "__main__":
    main()

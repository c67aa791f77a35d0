"""An operator's kind and sizes, and the terms that its instructions are linear in. Pure."""

from __future__ import annotations

import msgspec

RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")  # operators of ONNX Runtime for whole sequences


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """One operator of an artifact.

    Attributes:
        kind: Operator and types, as the fit names them. Products (convolutions, dense layers) have a type of weights.
        rows, columns, depth: Of a matrix product: output positions, outputs, and inputs of one tap. For other
            operators: 1, elements written, elements read. Of a recurrent operator: 1, gates, and inputs of a step.
        taps: Window size of a convolution, or the mean of several; of a recurrent operator, its units.
        products: Number of such products: groups, a batch of matrices, or the steps of all directions.
    """

    kind: str
    rows: int
    columns: int
    depth: int
    taps: float = 1
    products: int = 1


Block = tuple[int, int, int]  # rows, columns and inputs of one step of a kernel


def product_terms(one: Operation, block: Block) -> list[float]:
    """The terms of a matrix product, which a kernel computes block by block.

    A kernel has work for each call, each row of blocks, each block, each step over the inputs in it, and each tap's
    pointer; and besides the kernel for each output, each row's taps and each column. An operator of several products
    also has work that is done once, and may arrange its weights once.
    """
    if one.kind.split()[0] in RECURRENT:
        return _recurrent_terms(one)
    rows, columns = -(-one.rows // block[0]), -(-one.columns // block[1])
    blocks = rows * columns
    depth = -(-one.depth // block[2]) * block[2]
    terms = [
        1.0, rows, blocks, blocks * one.taps * depth, blocks * one.taps, one.rows * one.columns, one.rows * one.taps,
        one.columns, one.rows * one.taps * one.depth, one.columns * one.taps * one.depth,
    ]  # fmt: skip
    once = [1.0, one.columns * one.taps * one.depth]
    return [*(one.products * float(term) for term in terms), *map(float, once)]


def _recurrent_terms(one: Operation) -> list[float]:
    """As `product_terms`: of a step, its gates, and the products with its inputs and with the units; then of a call."""
    step = [1.0, one.columns, one.columns * one.depth, one.columns * one.taps, *[0.0] * 6]
    return [*(one.products * float(term) for term in step), 1.0, one.columns * (one.depth + one.taps)]


def other_terms(one: Operation) -> list[float]:
    """The terms of an operator without a product: a call, elements written, elements read."""
    return [1.0, float(one.columns), float(one.depth)]


def is_product(kind: str) -> bool:
    """True for kinds with a type of weights."""
    return "*" in kind


def is_partial(outputs: int) -> bool:
    """True for numbers of outputs for which XNNPACK computes a float product in other, slower kernels than for 8."""
    return 0 < outputs % 8 < 7

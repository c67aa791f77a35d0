"""Resize of images: nearest and linear, with ONNX's coordinate transformation modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper

from converters.lowering.registry import CannotLowerError, Inputs, constant, lowers, optional, required
from converters.lowering.values import Value
from converters.lowering.windows import image_of
from edgekit.runtimes.onnx import OnnxRuntime

MOST_COPIES = 4  # XNNPACK concatenates at most five


@lowers("Resize", "Upsample")
def resize(inputs: Inputs, attrs: dict[str, Any]) -> Value:
    """Resize of height and width, by LiteRT's operators where they agree with ONNX, else by gathers or products."""
    source = required(inputs[0])
    if source.rank not in (3, 4):
        raise CannotLowerError(f"an input of {source.rank} axes (supported: 4 for images, 3 for signals)")
    sizes, scales = _sizes(source, inputs, attrs)
    if sizes[:2] != list(source.shape[:2]):
        raise CannotLowerError("a resize of the batch or of channels")
    mode = attrs.get("mode", "nearest")
    coordinates = attrs.get("coordinate_transformation_mode", "half_pixel")
    if coordinates == "tf_crop_and_resize":
        raise CannotLowerError(f"mode {mode} with {coordinates}")
    image = image_of(source)
    if image.flat:
        sizes, scales = [*sizes[:2], 1, sizes[2]], [*scales[:2], 1.0, scales[2]]
    native = mode == "linear" and _has_linear(image.tensor, sizes[2:], scales[2:], coordinates)
    if mode == "nearest" and not (attrs.get("antialias") and min(scales) < 1):
        rounding = attrs.get("nearest_mode", "round_prefer_floor")
        result = _nearest(image.tensor, sizes[2:], scales[2:], coordinates, rounding)
    elif native and not (attrs.get("antialias") and min(scales) < 1):
        options = {
            "align_corners": coordinates == "align_corners",
            "half_pixel_centers": coordinates in ("half_pixel", "pytorch_half_pixel"),
        }
        result = tf.raw_ops.ResizeBilinear(images=image.tensor, size=sizes[2:], **options)
    else:
        result = _by_products(image.tensor, sizes[2:], scales[2:], attrs)
    return image.value(result)


def _sizes(source: Value, inputs: Inputs, attrs: dict[str, Any]) -> tuple[list[int], list[float]]:
    fixed = optional(inputs, 3)
    chosen = [int(axis) % source.rank for axis in attrs.get("axes") or range(source.rank)]
    sizes, scales = list(source.shape), [1.0] * source.rank
    if fixed is not None and constant(fixed, "sizes").size:
        if attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise CannotLowerError(f"keep_aspect_ratio_policy {attrs['keep_aspect_ratio_policy']}")
        for axis, size in zip(chosen, constant(fixed, "sizes").tolist(), strict=True):
            sizes[axis], scales[axis] = int(size), int(size) / source.shape[axis]
        return sizes, scales
    given_scales = optional(inputs, 2) or optional(inputs, 1)
    for axis, scale in zip(chosen, constant(given_scales, "scales").tolist(), strict=True):
        sizes[axis], scales[axis] = int(np.floor(source.shape[axis] * scale)), float(scale)
    return sizes, scales


def _has_linear(tensor: Any, sizes: list[int], scales: list[float], coordinates: str) -> bool:
    """True where LiteRT's RESIZE_BILINEAR has the same source places: the scales fit the sizes exactly."""
    exact = all(
        abs(size - int(n) * scale) < 1e-6 for size, n, scale in zip(sizes, tensor.shape[1:3], scales, strict=True)
    )
    return exact and not (coordinates == "pytorch_half_pixel" and 1 in sizes) and coordinates != "half_pixel_symmetric"


def _by_products(tensor: Any, sizes: list[int], scales: list[float], attrs: dict[str, Any]) -> Any:
    """Any other interpolation: each result is a weighted sum along an axis, so an axis is multiplied by a matrix."""
    for axis in (1, 2):
        size, wanted = int(tensor.shape[axis]), sizes[axis - 1]
        if (size, wanted, scales[axis - 1]) == (wanted, wanted, 1.0):
            continue
        matrix = _interpolation(size, scales[axis - 1], attrs)
        if matrix.shape != (size, wanted):
            raise CannotLowerError(f"a resize from {size} to {wanted} with scale {scales[axis - 1]:g}")
        moved = tf.transpose(tensor, (0, 3 - axis, 3, axis))
        rows = tf.matmul(tf.reshape(moved, (-1, size)), matrix)
        shape = [int(count) for count in moved.shape[:3]]
        tensor = tf.transpose(tf.reshape(rows, (*shape, wanted)), (0, 3, 1, 2) if axis == 1 else (0, 1, 3, 2))
    return tensor


def _interpolation(size: int, scale: float, attrs: dict[str, Any]) -> Any:
    """The matrix (size, wanted) of a resize along one axis: ONNX's reference, applied to each unit vector."""
    kept = {
        name: value
        for name, value in attrs.items()
        if name in ("mode", "coordinate_transformation_mode", "antialias", "cubic_coeff_a", "exclude_outside")
    }
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **kept)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "resize",
        [value("x", onnx.TensorProto.FLOAT, [size, 1, size, 1])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([1, 1, scale, 1], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    units = np.eye(size, dtype=np.float32).reshape(size, 1, size, 1)
    result = OnnxRuntime(model.SerializeToString(), threads=1).run({"x": units})["y"]
    return np.ascontiguousarray(result.reshape(size, -1))


def _nearest(tensor: Any, sizes: list[int], scales: list[float], coordinates: str, rounding: str) -> Any:
    rows = [
        _source_indices(int(n), size, s, coordinates, rounding)
        for n, size, s in zip(tensor.shape[1:3], sizes, scales, strict=True)
    ]
    times = [size // int(n) for size, n in zip(sizes, tensor.shape[1:3], strict=True)]
    few = min(times) >= 1 and max(times) <= MOST_COPIES
    if few and all(np.array_equal(picked, np.arange(len(picked)) // t) for picked, t in zip(rows, times, strict=True)):
        return _repeated(tensor, times)
    native_rows = [(np.arange(size) * int(n)) // size for n, size in zip(tensor.shape[1:3], sizes, strict=True)]
    if all(np.array_equal(picked, native) for picked, native in zip(rows, native_rows, strict=True)):
        return tf.raw_ops.ResizeNearestNeighbor(
            images=tensor, size=sizes, align_corners=False, half_pixel_centers=False
        )
    for axis, picked in enumerate(rows, start=1):
        tensor = tf.gather(tensor, picked.astype(np.int32), axis=axis)
    return tensor


def _repeated(tensor: Any, times: list[int]) -> Any:
    """Repeat rows and columns by concatenating copies: delegates support that, but no nearest-neighbour resize."""
    rows, height, width, channels = (int(size) for size in tensor.shape)
    down, across = times
    if across > 1:
        wide = tf.concat([tensor] * across, axis=3)
        tensor = tf.reshape(wide, (rows, height, width * across, channels))
    if down > 1:
        line = tf.reshape(tensor, (rows, height, 1, width * across * channels))
        tensor = tf.reshape(tf.concat([line] * down, axis=2), (rows, height * down, width * across, channels))
    return tensor


def _source_indices(size: int, wanted: int, scale: float, coordinates: str, rounding: str) -> Any:
    """The source row or column of each of `wanted` outputs, as ONNX defines Resize."""
    index = np.arange(wanted, dtype=np.float64)
    where = {
        "half_pixel": (index + 0.5) / scale - 0.5,
        "half_pixel_symmetric": (index + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (index + 0.5) / scale - 0.5 if wanted > 1 else index * 0,
        "align_corners": index * ((size - 1) / (wanted - 1) if wanted > 1 else 0.0),
        "asymmetric": index / scale,
    }[coordinates]
    rounded = {
        "round_prefer_floor": np.ceil(where - 0.5),
        "round_prefer_ceil": np.floor(where + 0.5),
        "floor": np.floor(where),
        "ceil": np.ceil(where),
    }[rounding]
    return np.clip(rounded, 0, size - 1).astype(np.int64)

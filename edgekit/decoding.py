"""Decode images with Pillow (the extra ``images``), and open the Processor of a bundle on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import client_inputs, client_outputs
from edgekit.errors import DataError, ManifestError, MissingExtraError
from edgekit.preprocess import Processing, Processor
from edgekit.sealing.opening import read_file
from edgekit.tensors import Array

MAX_SCANS = 128  # scans of a progressive JPEG; each needs few bytes and a pass over the whole image
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode_image(data: bytes, colour: str, max_pixels: int, exif: bool) -> Array:
    """Decode a JPEG or PNG to uint8 (height, width, 3), or (height, width, 1) for grey.

    Args:
        data: Bytes of the file; of several pictures the first is used.
        colour: ``rgb``, ``bgr`` or ``grey``; transparency is dropped.
        max_pixels: Larger images are refused by their header, before decoding.
        exif: Rotate the picture by its EXIF orientation.

    Raises:
        DataError: The bytes are no JPEG or PNG, damaged, too large, or have more than 8 bits per channel.
        MissingExtraError: Pillow is not installed.
    """
    image_module = _pillow()
    try:
        with image_module.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _check(image, data, max_pixels)
            image.load()
            return _array(image, colour, exif)
    except DataError:
        raise
    except Exception as error:  # Pillow raises errors of any type for hostile bytes
        reason = "no JPEG or PNG" if type(error).__name__ == "UnidentifiedImageError" else f"damaged: {error}"
        raise DataError(f"the image cannot be decoded: the {len(data)} bytes are {reason}") from error


def require_decoder() -> None:
    """Raise MissingExtraError if Pillow is not installed; called before any work starts."""
    _pillow()


def open_processor(manifest: Manifest, folder: Path) -> Processor | None:
    """Open the Processor of a bundle's processing steps; None if it has none.

    Args:
        manifest: Manifest of the bundle; the caller has verified the files.
        folder: Folder of the files.

    Raises:
        ManifestError: The steps do not fit the model, or a file that they read is damaged.
        MissingExtraError: The bundle decodes images, and Pillow is not installed.
    """
    if not isinstance(manifest.processing, Processing):
        return None
    inputs, outputs = client_inputs(manifest.inputs), client_outputs(manifest.inputs, manifest.outputs)

    files = {entry.path: entry for entry in manifest.files}

    def read(name: str) -> bytes:
        try:
            return read_file(manifest, folder, files[name])
        except OSError as error:
            raise ManifestError(f"{name}, which the bundle's processing reads, cannot be read: {error}") from error

    processor = Processor(manifest.processing, inputs, outputs, read=read, decode_image=decode_image)
    if any(raw.kind == "image" for raw in processor.raw):
        require_decoder()
    return processor


def _pillow() -> Any:
    try:
        from PIL import Image  # only bundles that decode images need it
    except ImportError as error:
        raise MissingExtraError("PIL", "images") from error
    return Image


def _check(image: Any, data: bytes, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"the image is {width} by {height}, the limit is {max_pixels} pixels")
    if image.mode not in _MODES:
        raise DataError(
            f"the image has mode {image.mode}, expected 8 bits per channel", advice="Save it with 8 bits per channel."
        )
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise DataError(f"the image has {data.count(bytes([0xFF, 0xDA]))} scans, the limit is {MAX_SCANS}")


def _array(image: Any, colour: str, exif: bool) -> Array:
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if colour == "grey":
        return np.asarray(image.convert("L"), np.uint8)[:, :, None]
    pixels = np.asarray(image.convert("RGB"), np.uint8)
    return pixels[:, :, ::-1] if colour == "bgr" else pixels

"""Images to arrays, by Pillow (the extra ``images``), and the Processor of a bundle on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.errors import DataError, ManifestError, MissingExtraError
from edgekit.preprocess import Processing, Processor
from edgekit.sealing.opening import read_file
from edgekit.tensors import Array

MAX_SCANS = 128  # of a progressive JPEG: each costs a pass over the whole image, for a few bytes
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode_image(data: bytes, colour: str, max_pixels: int, exif: bool) -> Array:
    """JPEG or PNG as uint8 (height, width, 3), or (height, width, 1) for grey.

    Args:
        data: The file's bytes; of several pictures the first is taken.
        colour: ``rgb``, ``bgr`` or ``grey``; transparency is dropped.
        max_pixels: Larger images are refused by their header, before anything is decoded.
        exif: Turn the picture as its camera said.

    Raises:
        DataError: the bytes are no such image, damaged, too large, or have more than 8 bits a channel.
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
    except Exception as error:  # foreign parsers meet hostile bytes here: whatever they raise, the bytes are at fault
        reason = "no JPEG or PNG" if type(error).__name__ == "UnidentifiedImageError" else f"damaged: {error}"
        raise DataError(f"the image cannot be decoded: the {len(data)} bytes are {reason}") from error


def require_decoder() -> None:
    """Raise MissingExtraError where Pillow is not installed; to be told before any work."""
    _pillow()


def open_processor(manifest: Manifest, folder: Path) -> Processor | None:
    """What a bundle does before and after its model; None where nothing.

    Args:
        manifest: Of the bundle; the caller has verified the files.
        folder: Where they are.

    Raises:
        ManifestError: its steps do not fit the model, or a file that they read is damaged.
        MissingExtraError: it decodes images, and Pillow is not installed.
    """
    if not isinstance(manifest.processing, Processing):
        return None
    inputs, outputs = (tuple(b.spec for b in bindings) for bindings in (manifest.inputs, manifest.outputs))

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
        raise DataError(f"the image has mode {image.mode}, expected 8 bits a channel", advice="Save it with 8 bits.")
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

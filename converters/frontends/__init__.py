"""Frontends: read model files of every format as canonical float graphs; the content decides the format.

Changes of the canonical graph belong in converters/passes.
"""

from __future__ import annotations

from converters.frontends.files.sniff import ONNX, TFLITE, sniff
from converters.frontends.load import load_model
from converters.frontends.source import Source

__all__ = ["ONNX", "TFLITE", "Source", "load_model", "sniff"]

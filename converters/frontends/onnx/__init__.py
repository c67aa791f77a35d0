"""Read ONNX files as canonical graphs: checked, one standard operator set, one float type, first axis the batch.

`normalise.py` holds the sequence of steps; each step is a file of its own.
"""

from __future__ import annotations

from converters.frontends.onnx.answers import onnx_answers
from converters.frontends.onnx.normalise import canonical, load_onnx
from converters.frontends.onnx.opset import CANONICAL_OPSET
from converters.frontends.onnx.source import onnx_precision, steps_after_cut

__all__ = ["CANONICAL_OPSET", "canonical", "load_onnx", "onnx_answers", "onnx_precision", "steps_after_cut"]

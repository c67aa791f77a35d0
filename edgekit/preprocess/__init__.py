"""Processing before and after the model, as data: decode, resize, normalize, tokenize; softmax, labels, boxes.

A bundle's manifest has a `Processing`, and a `Processor` runs its steps. Conversion measures quality with the same code
that devices and the cloud tier run. Pure: no I/O; image libraries and reading of files belong to the callers.
"""

from edgekit.preprocess.document import (
    Before,
    Processing,
    Raw,
    filled_inputs,
    output_labels,
    output_specs,
    processing_faults,
    raw_inputs,
)
from edgekit.preprocess.processor import Processor

__all__ = [
    "Before",
    "Processing",
    "Processor",
    "Raw",
    "filled_inputs",
    "output_labels",
    "output_specs",
    "processing_faults",
    "raw_inputs",
]

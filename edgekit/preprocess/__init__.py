"""Before and after the model, as data: decode, resize, normalize, tokenize; softmax, labels, boxes.

A bundle's manifest carries a `Processing`; `Processor` does what it says. Conversion evaluates through the same code
that devices and the cloud tier run, so the accuracy that was measured is the accuracy that is shipped.
"""

from edgekit.preprocess.document import Before, Processing, Raw, output_specs, processing_faults, raw_inputs
from edgekit.preprocess.processor import Processor

__all__ = ["Before", "Processing", "Processor", "Raw", "output_specs", "processing_faults", "raw_inputs"]

"""Prunes one model to shares of its parameters: `python -m benchmarks.prune_shares MODEL DATA FOLDER SHARE ...`.

Writes ``float.onnx`` and one ``SHARE.onnx`` each into FOLDER, and prints a JSON object: share -> the share that is left
and the seconds. There is no gradient step: channels are chosen and later layers are refitted on all samples of DATA.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnx

from converters.canonical import canonical_of
from converters.data.samples import load_samples
from converters.framework_process import TensorFlowProcess
from converters.frontends.load import load_model
from converters.pruning.pruner import ChannelPruner, parameters

PARITY_ROWS = 16


def main() -> None:
    """Write the files."""
    model, data, folder = (Path(argument) for argument in sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    with TensorFlowProcess() as process:
        source = load_model(model, process)
        samples = load_samples(data, source.graph.sample_inputs, interface=source.graph.interface)
        graph = canonical_of(source, samples.take(slice(0, PARITY_ROWS)), prune=True).graph
    onnx.save(graph.model, folder / "float.onnx")
    made = {}
    begun = time.perf_counter()
    pruner = ChannelPruner(graph, samples)
    for share in sys.argv[4:]:
        level = pruner.level(float(share), parameters, "parameters")
        onnx.save(pruner.pruned(level.kept).graph.model, folder / f"{share}.onnx")
        made[share] = {"left": level.left, "seconds": time.perf_counter() - begun}
        begun = time.perf_counter()
    print(json.dumps(made))


if __name__ == "__main__":
    main()

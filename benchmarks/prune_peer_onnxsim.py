"""onnxsim's structured Wanda pruning with its refit: `prune_peer_onnxsim.py FLOAT.onnx DATA.npz FOLDER SHARE ...`.

It runs in onnxsim's own environment, so it imports nothing of edgekit. For each share of the parameters it writes
``SHARE.onnx`` into FOLDER, at the sparsity that leaves this share or a little less.
"""

import sys
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxsim

HALVINGS = 12
BATCH = 50


def main() -> None:
    """Write the files."""
    model, rows = onnx.load(sys.argv[1]), np.load(sys.argv[2])["x"]
    folder = Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    name = model.graph.input[0].name
    data = [{name: rows[at : at + BATCH]} for at in range(0, len(rows), BATCH)]
    whole = parameters(model)
    for share in sys.argv[4:]:
        low, high, best = 0.0, 0.95, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            pruned = onnxsim.apply_structured_wanda_pruning(model, data, sparsity=middle)
            if parameters(pruned) > float(share) * whole:
                low = middle
            else:
                high, best = middle, pruned
        if best is not None:
            onnx.save(onnxsim.apply_pruning_finetune(model, best, data), folder / f"{share}.onnx")


def parameters(model: onnx.ModelProto) -> int:
    """Number of values of all float constants."""
    return sum(prod(one.dims) for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)


if __name__ == "__main__":
    main()

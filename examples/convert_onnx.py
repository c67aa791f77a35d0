"""Convert an ONNX model for a Jetson and for the cloud tier, without samples.

Builds a small regression network with plain ONNX and converts it. Without samples, only float candidates are built, and
parity is measured on random inputs. Prints for each target the chosen candidate and its largest difference from the
float model:

    jetson-orin: float16, largest difference ...
    server: float32, largest difference 0
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters import convert


def save_model(path: Path) -> None:
    """A dense network from 8 values to 1, with a free batch."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 16)).astype(np.float32),
        "b1": np.zeros(16, np.float32),
        "w2": rng.normal(0, 0.3, (16, 1)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "w1", "b1"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "w2"], ["price"]),
        ],
        "prices",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("price", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main() -> None:
    save_model(Path("prices.onnx"))
    for report in convert("prices.onnx", targets=["jetson-orin", "server"]):
        difference = next(p.max_abs for p in report.parity if p.candidate == report.chosen)
        print(f"{report.target}: {report.chosen}, largest difference {difference:.2g}")


if __name__ == "__main__":
    main()

"""Makes the outputs of a .tflite's graph those that its signature names.

litert-quantizer puts a DEQUANTIZE behind an int8 tensor that an operator reads as float, such as ArgMax. Where the
tensor is an output too, the graph then gives out the float copy, and the signature still names the tensor. A delegate
keeps no such tensor, so the file would fail in its first run.
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema


def with_named_outputs(data: bytes) -> bytes:
    """The same file, whose graphs give out what their signatures name; `data` itself where they do."""
    changes = {}
    model = schema.Model.GetRootAs(data)
    for number in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(number)
        named = [signature.Outputs(index).TensorIndex() for index in range(signature.OutputsLength())]
        given = model.Subgraphs(signature.SubgraphIndex()).OutputsAsNumpy().tolist()
        places = [place for place, tensor in enumerate(given) if tensor not in named]
        missing = [tensor for tensor in named if tensor not in given]
        if missing and len(missing) == len(places):
            changes[signature.SubgraphIndex()] = dict(zip(places, missing, strict=True))
    if not changes:
        return data
    changed = bytearray(data)
    model = schema.Model.GetRootAs(changed)
    for graph, tensors in changes.items():
        outputs = model.Subgraphs(graph).OutputsAsNumpy()  # a view of `changed`
        for place, tensor in tensors.items():
            outputs[place] = tensor
    return bytes(changed)

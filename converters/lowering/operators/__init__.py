"""TensorFlow versions of ONNX operators, one module per family; each function registers itself.

Only functions decorated with `lowers` belong here. The walk over a graph is in converters/lowering/execute.py.
"""

"""Restoring ONNX Loops to GRU, LSTM and RNN: one step on symbols, recognizing the cell, rewriting the graph.

Only this pass belongs here. The operators' TensorFlow versions are in converters/lowering/operators/recurrent.py.
"""

"""Keras models and SavedModels: their export as ONNX, and TensorFlow's own converter to LiteRT.

Only the TensorFlow process imports the files that import TensorFlow; what needs none of it belongs to `files`.
"""

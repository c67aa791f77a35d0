"""Float .tflite files: reading them as ONNX, and their direct route to LiteRT.

Reading of artifacts that edgekit makes belongs to `converters.backends.tflite`.
"""

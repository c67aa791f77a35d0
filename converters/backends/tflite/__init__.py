""".tflite files as bytes: what is read from them, and the last changes that are written to them.

Nothing here knows a recipe, a target or another file format.
"""

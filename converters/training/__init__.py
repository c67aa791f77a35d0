"""Training of the canonical graph in TensorFlow: a trainable view, distillation, fine-tuning, the user's own loop.

Everything here runs in the framework process, on the rows that it is given: the calibration split.
"""

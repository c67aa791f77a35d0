"""torch.export programs: a safe copy, and its export as ONNX in the PyTorch process.

Nothing here unpickles.
"""

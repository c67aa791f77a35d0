"""How good an artifact is: metrics, confidence bounds, parity, divergence and the selection that they lead to.

Arrays and numbers only; nothing here makes or runs an artifact.
"""

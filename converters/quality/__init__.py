"""Quality of artifacts: metrics, confidence bounds, parity, divergence, and the selection of a candidate.

The rules work on arrays and numbers only; nothing here makes or runs an artifact.
"""

"""Watches the answers of models: counts, sketches, the test of drift, and the comparison of a new model in shadow.

Nothing here changes an answer, or sends one: `control` and `spool` send.
"""

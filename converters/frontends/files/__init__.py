"""Which kind of file a model is, by its bytes, and what to type where edgekit does not read it.

Nothing here imports a framework, or unpickles or runs anything.
"""

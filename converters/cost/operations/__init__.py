"""The operators of an artifact, as the runtime runs them, with the sizes that their instructions depend on.

Readers of files and the sizes live here; what an operator costs does not.
"""

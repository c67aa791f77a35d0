"""The canonical float graph, and what passes and backends may ask of it.

Nothing here reads a source format or writes an artifact.
"""

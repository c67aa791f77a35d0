"""The canonical float graph, with the facts that passes and backends need.

Nothing here reads a source format or writes an artifact.
"""

"""The models of one server: loading, switching and unloading them within a memory budget.

Nothing here knows a protocol; one model's own queue is in `session`.
"""

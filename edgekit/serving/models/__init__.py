"""The models of one server: loading, switching and unloading them within a memory budget.

Nothing here knows a network protocol; the queue of a single model is in `session`.
"""

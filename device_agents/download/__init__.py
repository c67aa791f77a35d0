"""Downloads a bundle from MQTT requests, HTTP ranges, broadcasts, other slots and deltas, within the owner's limits.

Nothing here decides whether a bundle is wanted, and nothing here activates one.
"""

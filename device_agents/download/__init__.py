"""Fetching a bundle's files: from blocks on the device, deltas, HTTP ranges, MQTT requests and broadcasts.

Every source ends in the same verification; nothing here activates a bundle.
"""

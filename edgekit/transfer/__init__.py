"""Rules for moving blobs in blocks: block maps, windows and broadcasts.

Pure; the device and the controller bring sockets and clocks.
"""

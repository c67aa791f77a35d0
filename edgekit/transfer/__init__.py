"""Rules for the transfer of blobs in blocks: block maps, windows, time-outs and broadcasts.

Pure: no I/O. Sockets, files and clocks belong to the device and the controller.
"""

"""The command `profile`: measures a published bundle on this device, in a process of its own.

The process does not change what the device runs, and nothing of the bundle stays on the disk.
"""

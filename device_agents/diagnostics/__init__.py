"""`edgekit-agent check`: the checks of a device, and the rules that judge their values.

Nothing here changes the device.
"""

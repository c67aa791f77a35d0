"""`edgekit-agent check`: what is looked at on a device, and the rules that judge it.

Nothing here changes the device.
"""

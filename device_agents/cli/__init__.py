"""The commands of `edgekit-agent`, one module a command; `device_agents.__main__` has the table of them.

Each parses its options, calls one part of the device and prints the result. Work and rules do not belong here.
"""

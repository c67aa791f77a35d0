"""The work of remote commands on a device: self-test, logs, restart and settings.

Whether a command may run at all is decided in `device_agents.control.commands`. Nothing here is a shell.
"""

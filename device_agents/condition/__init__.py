"""What changes on a device while the agent runs: temperature, throttling, free space, uptime and its clock.

What stays the same until the next start is in `device_agents.facts`. Nothing here decides about bundles.
"""

"""Values that change on a device while the agent runs: temperature, throttling, free space, uptime and its clock.

Values that stay the same until the next start are in `device_agents.facts`. Nothing here decides about bundles.
"""

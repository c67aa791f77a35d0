"""Builds the parts of the device from settings; the only place that chooses the device's adapters.

`serving` builds what answers local applications, `control` the agent around it. Rules and work do not belong here.
"""

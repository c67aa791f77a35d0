"""The device's side of MQTT: the broker link, requests, the assignment, commands, reports, events and telemetry.

Nothing here downloads a bundle or changes a slot.
"""

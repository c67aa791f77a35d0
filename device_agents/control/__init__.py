"""The device's side of MQTT: the link to the broker, requests, commands, telemetry and events.

Nothing here downloads a bundle or changes a slot.
"""

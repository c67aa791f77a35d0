"""Serving models over the Open Inference Protocol, on the device and in the cloud tier.

Each room below has one part of it; nothing here knows MQTT, updates or the registry.
"""

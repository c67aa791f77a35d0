"""Serving models over the Open Inference Protocol, on the device and in the cloud tier.

Each folder has one part; `endpoints` opens HTTP and gRPC together, and `cloud` is the cloud tier's model server.
Nothing here knows MQTT, updates or the registry.
"""

"""Serving models over the Open Inference Protocol, on the device and in the cloud tier.

Each folder has one part; `endpoints` opens HTTP and gRPC together. Nothing here knows MQTT or updates. Only `cloud`
knows the registry.
"""

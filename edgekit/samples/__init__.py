"""Samples that devices collect for retraining: their content, their place in the registry's store, and files of them.

Which answers are kept is decided on the device (`device_agents/spool`). Encryption is in `edgekit/sealing`, and the way
over MQTT in `edgekit/mqtt/sample_parts.py`.
"""

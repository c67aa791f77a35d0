"""MQTT: the transport, its topics and messages, and the brokers that edgekit can start.

Nothing here decides what a message means for a rollout or an update.
"""

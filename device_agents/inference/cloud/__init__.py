"""Calls of the cloud tier: its endpoints in their order, what holds calls back, and the checks of answers.

`routing_rules` chooses a request's route, and `egress_rules` says what may leave the device; nothing here does.
"""

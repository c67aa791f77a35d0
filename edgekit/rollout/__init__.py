"""Rollouts: the state machine, the plan of waves, and the devices that a rollout covers.

Pure: no I/O, no clock; the controller brings the facts and carries out the effects.
"""

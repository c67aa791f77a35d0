"""Rollouts: the state machine, the plan of waves, and the devices that a rollout covers.

Pure rules: no I/O and no clock. The controller passes in the facts and carries out the effects.
"""

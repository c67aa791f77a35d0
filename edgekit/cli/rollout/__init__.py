"""The commands of `edgekit rollout`: start, status, list, watch, pause, resume and abort.

The rules of a rollout are in `edgekit.rollout`; these modules read options, call one service and print.
"""

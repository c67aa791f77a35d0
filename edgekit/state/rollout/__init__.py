"""Rollouts, assignments and standing assignments in SQL: what each device was told to run.

Which event changes a rollout, and how, is decided in `edgekit.rollout`; these modules store it in one transaction.
"""

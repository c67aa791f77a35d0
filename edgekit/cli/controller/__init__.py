"""The commands of `edgekit controller`: run, backup, restore, token and webhook.

The work is in `edgekit.controller`; these modules read options, call one service and print.
"""

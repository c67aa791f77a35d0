"""The commands of `edgekit registry`: init, verify, publish, list, show, promote, retire, keys and device classes.

The rules are in `edgekit.registry` and `edgekit.trust`; these modules read options, call one service and print.
"""

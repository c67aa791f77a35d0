"""The commands of `edgekit device`: enroll, list, show, changes, codes, groups, commands and transfers.

The rules are in `edgekit.state` and `edgekit.identity`; these modules read options, call one service and print.
"""

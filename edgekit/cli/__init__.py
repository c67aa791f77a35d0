"""The command line: one module or folder for each noun; helpers that they share are in `edgekit.cli.common`.

Commands read options, call one service and print; rules live elsewhere. Only `main` catches errors.
"""

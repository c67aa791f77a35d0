"""The command line: one module a noun; main.py is the only place that catches."""

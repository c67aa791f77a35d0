"""The demo: the commands a user would type, run in order on real parts, each result checked."""

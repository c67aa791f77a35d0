"""The demo: it runs the commands that a user would type, on real parts, and checks each result.

Nothing else may import it; it is given its printer.
"""

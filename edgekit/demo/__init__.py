"""The demo: it runs the commands of edgekit as a user would type them, on real parts, and checks each result.

Only the command `edgekit demo` may import it. The demo prints through a `Printer` that the command passes in.
"""

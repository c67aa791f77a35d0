"""The contents of a bundle: manifest, recipe, target profiles, bindings, compatibility and golden samples.

Only values and rules belong here; code that reads a store, a disk or a network does not.
"""

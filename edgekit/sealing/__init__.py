"""Sealed bundles: encryption of a bundle's files for device classes, the keys of the classes, and opening in memory.

Signing keys, manifests and transfer belong to other rooms. docs/decisions/sealing.md explains the design.
"""

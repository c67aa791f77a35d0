"""Sealed bundles: every file encrypted, for the devices of a class to open in memory; docs/decisions/sealing.md."""

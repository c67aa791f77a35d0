"""Offload certificates on this device: whether one holds, and what was learned against it.

Nothing here calls the cloud tier; the certificates themselves are read by `edgekit.certificate`.
"""

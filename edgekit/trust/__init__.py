"""Trust: signing keys, signed envelopes, assignments, and both sides of the TUF repository.

It reads and writes only metadata; blobs and bundles are handled in `edgekit.registry` and on the device.
"""

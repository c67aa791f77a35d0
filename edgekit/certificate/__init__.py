"""Offload certificates: the document, what it is bound to, the score of an answer, and the test that refutes one.

Devices use all of it, so nothing here needs more than numpy and msgspec. Making a certificate is `converters.cascade`.
"""

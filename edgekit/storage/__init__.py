"""Stores for blobs (file://, s3://, gs://, az://), the lease of one writer, and durable writes to a device's disk.

This room knows nothing about the content of the files.
"""

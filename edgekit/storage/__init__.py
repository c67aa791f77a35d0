"""Files and object stores: file://, s3:// and others, leases, and durable writes to disk.

Nothing here knows what the files mean.
"""

"""Parsers of what strangers send, under random bytes."""

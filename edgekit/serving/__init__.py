"""Serving: Open Inference Protocol v2 over HTTP, the same code on devices and in the cloud tier."""

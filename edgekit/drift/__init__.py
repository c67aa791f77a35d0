"""Drift of a model's inputs and answers from its calibration data: statistics, the reference in a bundle, the test.

Everything here is pure. The converter makes references (`converters.drift_reference`); the device tests against them
(`device_agents.inference.watch.drift`).
"""

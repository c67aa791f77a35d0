"""Rules that judge the health of devices by their telemetry: comparisons with bounds, and alarms.

Everything here is pure. Telemetry is stored in `edgekit.state.fleet.telemetry`.
"""

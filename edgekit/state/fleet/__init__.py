"""Devices in SQL: records, reports, telemetry, alarms, commands, certificates, and filters over them.

Each module is the table of one kind of fact with its queries. Rollouts and assignments of devices are in
`edgekit.state.rollout`, and nothing here reads them.
"""

"""The spool: samples of answers for retraining, chosen by rules, sealed, stored within limits, and sent when idle.

What may leave the device is decided in `device_agents/inference/egress_rules.py`, before anything gets here. Nothing
here can open what was stored: only the operator's private key can.
"""

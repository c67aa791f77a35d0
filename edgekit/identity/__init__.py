"""The identity of devices: their rising numbers, and how they get, renew and lose their certificates.

Nothing here talks to a broker or a database.
"""

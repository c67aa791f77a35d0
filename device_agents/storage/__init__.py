"""What outlives a restart: the journal, the slots and the check of their files.

Nothing here decides; it keeps what the update machine says.
"""

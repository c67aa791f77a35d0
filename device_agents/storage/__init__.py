"""State on the disk that outlives a restart: the journal, the slots and the check of their files.

Nothing here decides about an update; it stores the decisions of the update machine.
"""

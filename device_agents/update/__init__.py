"""The update of one model: the state machine, its transitions and its effects.

`machine`, `transitions` and `probation` are rules and do no I/O; `runner` journals each state before its effects.
"""

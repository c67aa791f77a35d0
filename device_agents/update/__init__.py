"""The update of one model: the state machine, its transitions, and the effects that they ask for.

`machine` and `transitions` are pure; `runner` journals each state before it runs an effect.
"""

"""Helpers that several commands share: settings, output, passphrases, class keys, the fleet state and the registry.

Nothing here is a command, and nothing here imports a command.
"""

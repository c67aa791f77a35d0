"""Runs the real aarch64 wheels under qemu and counts guest instructions. Needs a folder that `make arm` prepares.

Times do not belong here: emulated milliseconds say nothing about a board.
"""

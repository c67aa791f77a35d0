"""A condition of the device that a file stands for while it exists, such as a metered link."""

from __future__ import annotations

from pathlib import Path


def is_set(always: bool, file: Path | None) -> bool:
    """True where `always` is, or while `file` exists, or while that cannot be determined."""
    if always or file is None:
        return always
    try:
        file.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # for example a folder without search permission: waiting costs nothing
    return True

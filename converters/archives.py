"""Tells what is damaged in a zip archive: .keras, .pt2 and .npz files are archives."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path

CUT_OFF = "its end is missing, so it was not written or copied whole"
DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)


def damage_of(path: Path) -> str:
    """The damage of an archive; empty where every part has the checksum that it should have.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGES:
        return CUT_OFF
    with archive:
        for part in archive.infolist():
            try:
                with archive.open(part) as file:
                    while file.read(1 << 20):
                        pass
            except (*DAMAGES, NotImplementedError, RuntimeError):  # the last two: another method, or a password
                return f"its part {part.filename} is damaged"
    return ""

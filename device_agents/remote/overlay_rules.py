"""Pure rules of settings that were changed remotely: how a change is tried, kept, or taken back by the device."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

TRIED_STARTS = 3
FORMAT = 1


class OverlayRecord(msgspec.Struct, frozen=True):
    """The content of the overlay file.

    Attributes:
        values: Settings by key, as text; they win over the settings file and the environment.
        previous: The values before the last change, as long as no start with the new ones has reached the broker; None
            afterwards.
        starts: Starts since that change.
        format: Format number of the file.
    """

    values: dict[str, str] = {}
    previous: dict[str, str] | None = None
    starts: int = 0
    format: int = FORMAT


def changed(record: OverlayRecord, changes: Mapping[str, str]) -> OverlayRecord:
    """The record after ``set``: an empty text removes a key. A change stays on trial until a start has succeeded."""
    values = {key: value for key, value in {**record.values, **changes}.items() if value}
    if values == record.values:
        return record
    good = record.previous if record.previous is not None else record.values
    return OverlayRecord(values, good)


def started(record: OverlayRecord) -> OverlayRecord:
    """The record at a start of the agent: the third start without a connection takes the change back."""
    if record.previous is None:
        return record
    if record.starts >= TRIED_STARTS:
        return OverlayRecord(record.previous)
    return msgspec.structs.replace(record, starts=record.starts + 1)


def confirmed(record: OverlayRecord) -> OverlayRecord:
    """The record once the agent answers and has reached the broker."""
    return OverlayRecord(record.values)

"""Ranges of the time of day, such as quiet hours and maintenance windows. Pure rules."""

from __future__ import annotations

import re

import msgspec

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Hours(msgspec.Struct, frozen=True):
    """A range of local time: from minute `first` of the day up to minute `last`, which may be on the next day."""

    first: int
    last: int

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.first, self.last))

    def __contains__(self, minute: int) -> bool:
        if self.first <= self.last:
            return self.first <= minute < self.last
        return minute >= self.first or minute < self.last


def parse_hours(text: str, name: str, empty_advice: str = "") -> Hours | None:
    """Parse ``22:00-06:30``; None for an empty text.

    Args:
        text: The range.
        name: What it is, for messages, for example ``quiet hours``.
        empty_advice: What to do instead of a range that begins and ends at the same time.

    Raises:
        ValueError: the text has another form, or the range is empty.
    """
    if not text:
        return None
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError(f"{name} are {text!r}, expected HH:MM-HH:MM, for example 08:00-18:30")
    first_hour, first_minute, last_hour, last_minute = (int(part) for part in match.groups())
    hours = Hours(first_hour * 60 + first_minute, last_hour * 60 + last_minute)
    if hours.first == hours.last:
        raise ValueError(f"{name} {text!r} begin and end at the same time{'; ' if empty_advice else ''}{empty_advice}")
    return hours

"""Columns of `edgekit device list`: the ones that are always there, and those that --columns names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.cli.rollout.text import time_text
from edgekit.errors import SettingsError

if TYPE_CHECKING:
    from edgekit.state import DeviceView

DEFAULT = ("device", "target", "presence", "assigned", "models", "last deployments")
_KEYED = re.compile(r"(label|fact)\.(.{1,63})|(version|digest|state|outcome)\(([a-z0-9][a-z0-9._-]{0,62})\)")


def presence_text(view: DeviceView) -> str:
    """Whether the device is connected, and since when not; and whether it is in quarantine."""
    return f"{_connection(view)}, in quarantine" if view.quarantine else _connection(view)


def _connection(view: DeviceView) -> str:
    if view.online:
        return "online"
    return f"offline since {time_text(view.seen)}" if view.seen else "never seen"


def assigned_text(view: DeviceView) -> str:
    """The models and versions of its assignment."""
    return ", ".join(f"{name} {version}" for name, version in sorted(view.assigned.items())) or "nothing assigned"


def models_text(view: DeviceView) -> str:
    """The models that it runs, each with its version and state or the reason of its wait."""
    parts = []
    for name, running in sorted(view.models.items()):
        state = "" if running.state == "IDLE" else f" ({running.state})"
        state = f" (waits: {running.waiting.reason})" if running.waiting else state
        parts.append(f"{name} {running.version or 'none'}{state}")
    return ", ".join(parts) or "-"


def outcomes_text(view: DeviceView) -> str:
    """How its last deployments ended."""
    parts = []
    for name, outcome in sorted(view.outcomes.items()):
        error = f": {outcome.error}" if outcome.error else ""
        parts.append(f"{name} {outcome.version} {outcome.result}{error}")
    return ", ".join(parts) or "-"


_PLAIN: dict[str, Callable[[DeviceView], str]] = {
    "device": lambda view: view.device,
    "target": lambda view: view.target,
    "presence": presence_text,
    "assigned": assigned_text,
    "models": models_text,
    "deployments": outcomes_text,
    "last deployments": outcomes_text,
    "seen": lambda view: time_text(view.seen),
    "enrolled": lambda view: time_text(view.enrolled),
    "labels": lambda view: ", ".join(f"{key}={value}" for key, value in sorted(view.labels.items())) or "-",
}


def parse_columns(text: str) -> tuple[str, ...]:
    """The columns of a list separated by commas; the usual ones of an empty text.

    Raises:
        SettingsError: one of them is unknown; names the nearest.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in _PLAIN and not _KEYED.fullmatch(name):
            near = difflib.get_close_matches(name, _PLAIN, n=1)
            known = ", ".join(one for one in _PLAIN if " " not in one)
            raise SettingsError(
                f"column {name!r} is not one of {known}, label.KEY, fact.KEY, version(MODEL), digest(MODEL), "
                "state(MODEL) and outcome(MODEL)",
                advice=f"Did you mean {near[0]!r}?" if near else "",
            )
    return names or DEFAULT


def _fact_text(view: DeviceView, key: str) -> str:
    """A fact, or a part of one as filters name it."""
    from edgekit.state.fleet.attributes import fact_texts  # with the database's library, which only this column needs

    found = dict(fact_texts(view.facts)).get(key, view.facts.get(key))
    return "-" if found is None or found == "" else str(found)


def device_row(view: DeviceView, columns: Sequence[str]) -> list[str]:
    """The cells of one device; a dash where it has no value."""
    return [_cell(view, column) for column in columns]


def _cell(view: DeviceView, column: str) -> str:
    if column in _PLAIN:
        return _PLAIN[column](view)
    match = _KEYED.fullmatch(column)
    assert match is not None  # parse_columns has checked it
    kind, key, what, model = match.groups()
    if kind == "label":
        return view.labels.get(key) or "-"
    if kind == "fact":
        return _fact_text(view, key)
    if what == "outcome":
        return view.outcomes[model].result if model in view.outcomes else "-"
    running = view.models.get(model)
    return (getattr(running, what) if running else "") or "-"

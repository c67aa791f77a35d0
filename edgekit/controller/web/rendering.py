"""Renders pages: the template engine and its filters. All is escaped, because devices choose what they report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from edgekit.bounds import MAX_DATE
from edgekit.health.fact_text import fact_text
from edgekit.rollout.progress import counts_text, duration, gate_text
from edgekit.state import AuditEntry
from edgekit.state.overview import VersionCount

FOLDER = Path(__file__).parent
TONES = 6  # shades that stay apart; further versions are drawn together
_KINDS = {
    "RUNNING": "busy",
    "PAUSED": "warn",
    "FINISHED": "good",
    "ABORTED": "bad",
    "SUCCEEDED": "good",
    "FAILED": "bad",
    "WAITING": "warn",
    "NOT_REACHED": "warn",
    "RETURNED": "warn",
    "TOLD": "busy",
    "succeeded": "good",
    "failed": "bad",
    "rolled-back": "bad",
    "refused": "warn",
}


class Part(NamedTuple):
    """One part of a bar of versions."""

    version: str
    devices: int
    kind: str
    label: str

    @property
    def bar(self) -> tuple[str, int]:
        """Its class and its width."""
        return self.kind, self.devices


def environment() -> jinja2.Environment:
    """The template engine. A template that names an unknown value fails, instead of showing nothing."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        iso=lambda seconds: _moment(seconds).isoformat(timespec="seconds"),
        utc=lambda seconds: _moment(seconds).strftime("%Y-%m-%d %H:%M:%S UTC"),
        ago=_ago,
        number=lambda value: f"{value:,}",
        fact=fact_text,
        tones=tones,
        pretty=lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False),
        change=_change,
        state_parts=state_parts,
        gate_text=gate_text,
        rollout_kind=lambda state: _KINDS.get(state, ""),
        device_kind=lambda state: _KINDS.get(state, ""),
        body_schema=_body_schema,
        outcome_kind=lambda result: _KINDS.get(result, ""),
    )
    made.globals["counts_text"] = counts_text
    return made


def state_parts(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The parts of a bar of devices by state: what is done at the left, what is to come at the right."""
    sums = dict.fromkeys(("good", "bad", "warn", "busy", "idle"), 0)
    for state, count in counts.items():
        if state not in ("SKIPPED", "CANCELLED"):
            sums[_KINDS.get(state, "idle")] += count
    return list(sums.items())


def tones(versions: list[VersionCount]) -> list[Part]:
    """The parts of a bar: the newest versions in shades of their own, and all others together."""
    shown = versions if len(versions) <= TONES else versions[: TONES - 1]
    parts = [
        Part(one.version, one.devices, f"tone-{i}", f"{one.version}: {one.devices:,}") for i, one in enumerate(shown)
    ]
    rest = versions[len(shown) :]
    if rest:
        count = sum(one.devices for one in rest)
        parts.append(Part("", count, f"tone-{TONES - 1}", f"{len(rest)} older versions"))
    return parts


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds if 0 <= seconds < MAX_DATE else 0, timezone.utc)


@jinja2.pass_context
def _ago(context: jinja2.runtime.Context, seconds: float) -> str:
    passed = float(context["now"]) - seconds
    if passed < 0:
        return f"in {duration(-passed)}" if passed < -1 else "now"
    return f"{duration(passed)} ago" if passed >= 1 else "now"


def _change(entry: AuditEntry) -> str:
    """A change on one line: the fields that have another value now."""
    before = entry.before if isinstance(entry.before, dict) else {}
    after = entry.after if isinstance(entry.after, dict) else {}
    changed = [f"{key}: {_short(value)}" for key, value in after.items() if before.get(key) != value]
    if not after and before:
        changed = [f"{key}: {_short(value)}" for key, value in before.items()]
    text = ", ".join(changed) or "details"
    return text if len(text) <= 120 else text[:119] + "…"


def _body_schema(operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The schema of an operation's body; empty where it has no fields."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"].get(name, schema)
    return found if found.get("properties") else {}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them" if len(value) > 3 else " ".join(map(str, value))
    return "…" if isinstance(value, dict) else str(value)

"""Rows by which filters select devices: labels, facts, and what each model runs. They are written with their source."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from edgekit.bundle.order import version_order
from edgekit.mqtt.messages import Reported
from edgekit.state._sql import put_all, to_json, untrusted_text
from edgekit.state.tables import MAX_KEY, MAX_VALUE, attributes

LABEL = "label"
REPORTED = ("fact", "version", "digest", "state", "outcome", "waiting")
IDLE, UPDATING = "IDLE", "UPDATING"
MAX_FACTS, MAX_MODELS = 100, 100
# Lists of facts of which each member is a row; only these members where some are named. A processor of a PC has over a
# hundred features, and runtimes use few of them.
_FEATURES = (
    *("asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme", "neon", "vfpv4"),
    *("avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "fma", "f16c", "sse4_2"),
)
LISTS: Mapping[str, tuple[str, ...]] = {"accelerators": (), "providers": (), "cpu_features": _FEATURES}


class Attribute(NamedTuple):
    """One row; `sorted` is a version as a text that sorts like it, `number` the value where it is a number."""

    kind: str
    key: str
    value: str
    sorted: str = ""
    number: float | None = None


def sorted_version(version: str) -> str:
    """27 digits that sort like the version; empty for a text that is no version."""
    return "".join(f"{part:09d}" for part in version_order(version))


def label_attributes(labels: Mapping[str, str]) -> list[Attribute]:
    """One row for each label."""
    return [_attribute(LABEL, key, value) for key, value in labels.items()]


# What `edgekit.bundle.compat.mismatches` and the check of a rollout read; none of them changes while an agent runs.
JUDGED_FACTS = (
    "edgekit", "target", "arch", "runtimes", "memory_mib", "providers", "cpu_features", "seal_keys",
)  # fmt: skip


def report_attributes(report: Reported) -> tuple[list[Attribute], str]:
    """The rows of a report, and their digest: scalar facts; version, digest, state, outcome and wait of each model."""
    rows = list({(row.kind, row.key): row for row in _report_rows(report)}.values())
    return rows, hashlib.sha256(repr(sorted(rows, key=lambda row: row[:2])).encode()).hexdigest()


def traits(report: Reported) -> str:
    """The digest of what the plan of a rollout judges in a report: facts of a bundle's needs, what each model runs."""
    facts = [report.facts.get(name) for name in JUDGED_FACTS]
    models = {name: [one.digest, one.version, one.highest, one.release] for name, one in report.models.items()}
    return hashlib.sha256(to_json([facts, models]).encode()).hexdigest()


def _report_rows(report: Reported) -> Iterator[Attribute]:
    for key, text in itertools.islice(fact_texts(report.facts), MAX_FACTS):
        yield _attribute("fact", key, text)
    for model, running in list(report.models.items())[:MAX_MODELS]:
        if running.version:
            yield _attribute("version", model, running.version)
            yield _attribute("digest", model, running.digest)
        # The single steps of an update are not told apart: they would be written again and again.
        yield _attribute("state", model, IDLE if running.state == IDLE else UPDATING)
        if running.waiting is not None:
            yield _attribute("waiting", model, running.waiting.reason)
    for model, outcome in list(report.outcomes.items())[:MAX_MODELS]:
        yield _attribute("outcome", model, outcome.result)


def fact_texts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts as texts by the names that filters use, for example ``runtimes.litert`` and ``accelerators.hailo``."""
    for key, value in _scalars(facts):
        yield key, str(value).lower() if isinstance(value, bool) else str(value)


def _scalars(facts: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float | bool]]:
    """Facts as single values: ``runtimes.litert`` of a map, and ``accelerators.hailo`` (true) of a list of texts."""
    for key, value in facts.items():
        if isinstance(value, str | int | float | bool):
            yield key, value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{sub}", one) for sub, one in value.items() if isinstance(one, str | int | float))
        elif key in LISTS and isinstance(value, list):
            members = [one for one in value if isinstance(one, str) and (not LISTS[key] or one in LISTS[key])]
            yield from ((f"{key}.{one}", True) for one in members)


def _attribute(kind: str, key: str, value: str) -> Attribute:
    text = untrusted_text(value, MAX_VALUE)
    return Attribute(kind, untrusted_text(key, MAX_KEY), text, sorted_version(text), _number(text))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def put_labels(connection: sa.Connection, fleet: str, device: str, labels: Mapping[str, str]) -> None:
    """Replace the rows of a device's labels."""
    _replace(connection, fleet, device, (LABEL,), label_attributes(labels))


class ChangedRows:
    """The rows of reports of one fleet that differ from those in the database, written with few statements.

    Args:
        fleet: Name of the fleet.
    """

    def __init__(self, fleet: str) -> None:
        self._fleet = fleet
        self._gone: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def replace(self, device: str, after: list[Attribute]) -> None:
        """Write all rows of a device; what was there before is not known."""
        self._gone += [{"of_fleet": self._fleet, "of_device": device, "of_kind": kind} for kind in REPORTED]
        self._add(device, after)

    def update(self, device: str, before: list[Attribute], after: list[Attribute]) -> None:
        """Write the rows of a device that differ from those `before`, which are in the database."""
        old, new = {row[:2]: row for row in before}, {row[:2]: row for row in after}
        if any(key not in new for key in old):
            self.replace(device, after)
        else:
            self._add(device, [row for key, row in new.items() if old.get(key) != row])

    def write(self, connection: sa.Connection) -> None:
        """Write them inside the caller's transaction."""
        if self._gone:
            connection.execute(_GONE, self._gone)
        put_all(connection, attributes, ("fleet", "device", "kind", "key"), self._rows)

    def _add(self, device: str, rows: list[Attribute]) -> None:
        self._rows += [{"fleet": self._fleet, "device": device, **row._asdict()} for row in rows]


# Built at import: building a statement takes longer than running it.
_GONE = attributes.delete().where(
    attributes.c.fleet == sa.bindparam("of_fleet"),
    attributes.c.device == sa.bindparam("of_device"),
    attributes.c.kind == sa.bindparam("of_kind"),
)


def put_report(connection: sa.Connection, fleet: str, device: str, rows: list[Attribute]) -> None:
    """Replace the rows of a device's report."""
    changed = ChangedRows(fleet)
    changed.replace(device, rows)
    changed.write(connection)


def _replace(connection: sa.Connection, fleet: str, device: str, kinds: tuple[str, ...], rows: list[Attribute]) -> None:
    mine = sa.and_(attributes.c.fleet == fleet, attributes.c.device == device, attributes.c.kind.in_(kinds))
    connection.execute(attributes.delete().where(mine))
    if rows:
        values: list[dict[str, Any]] = [{"fleet": fleet, "device": device, **row._asdict()} for row in rows]
        connection.execute(attributes.insert(), values)

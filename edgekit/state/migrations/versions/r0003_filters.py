"""Revision 0003: rows by which filters select devices, and saved groups."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables, and fill them from labels and reports."""
    name = sa.String(length=63)
    op.create_table(
        "attributes",
        sa.Column("fleet", name, nullable=False),
        sa.Column("device", name, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("sorted", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("fleet", "device", "kind", "key", name=op.f("pk_attributes")),
    )
    op.create_index(op.f("ix_attributes_fleet_kind_key_value"), "attributes", ["fleet", "kind", "key", "value"])
    op.create_table(
        "groups",
        sa.Column("fleet", name, nullable=False),
        sa.Column("name", name, nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "name", name=op.f("pk_groups")),
    )
    op.add_column("reports", sa.Column("indexed", sa.String(length=64), nullable=False, server_default=""))
    _fill()


def downgrade() -> None:
    """Drop the tables and the column."""
    op.drop_column("reports", "indexed")
    op.drop_table("groups")
    op.drop_index(op.f("ix_attributes_fleet_kind_key_value"), table_name="attributes")
    op.drop_table("attributes")


def _fill() -> None:
    """Make the rows of all devices. A row that cannot be read is left out; the device's next report makes it."""
    connection = op.get_bind()
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in connection.execute(sa.text("SELECT fleet, name, labels FROM devices")).all():
        for key, value in _mapping(_decoded(row.labels)).items():
            _add(rows, row.fleet, row.name, "label", key, value)
    for row in connection.execute(sa.text("SELECT fleet, device, body FROM reports")).all():
        report = _decoded(row.body)
        for key, value in _mapping(report.get("facts")).items():
            if isinstance(value, str | int | float):
                _add(rows, row.fleet, row.device, "fact", key, value)
        for model, running in _mapping(report.get("models")).items():
            for kind in ("version", "digest", "state"):
                if value := _mapping(running).get(kind):
                    value = "UPDATING" if kind == "state" and value != "IDLE" else value
                    _add(rows, row.fleet, row.device, kind, model, value)
        for model, outcome in _mapping(report.get("outcomes")).items():
            _add(rows, row.fleet, row.device, "outcome", model, _mapping(outcome).get("result", ""))
    if rows:
        statement = (
            "INSERT INTO attributes (fleet, device, kind, key, value, sorted, number) "
            "VALUES (:fleet, :device, :kind, :key, :value, :sorted, :number)"
        )
        connection.execute(sa.text(statement), list(rows.values()))


def _add(rows: dict[tuple[str, ...], dict[str, Any]], fleet: str, device: str, kind: str, key: str, value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text, key = text.replace("\0", "?")[:255], key.replace("\0", "?")[:63]
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text)
    order = "".join(part.zfill(9) for part in match.groups()) if match else ""
    try:
        number: float | None = float(text)
    except ValueError:
        number = None
    if number is not None and not math.isfinite(number):
        number = None
    rows[fleet, device, kind, key] = {
        "fleet": fleet,
        "device": device,
        "kind": kind,
        "key": key,
        "value": text,
        "sorted": order,
        "number": number,
    }


def _decoded(text: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

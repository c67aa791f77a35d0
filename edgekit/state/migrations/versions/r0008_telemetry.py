"""Revision 0008: hourly roll-ups of telemetry, the baselines of bundles, and alarms."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables."""
    name = sa.String(length=63)
    op.create_table(
        "telemetry_hours",
        sa.Column("fleet", name, nullable=False),
        sa.Column("device", name, nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("judged", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", "hour", name=op.f("pk_telemetry_hours")),
    )
    op.create_index(op.f("ix_telemetry_hours_fleet_hour"), "telemetry_hours", ["fleet", "hour"])
    op.create_table(
        "telemetry_marks",
        sa.Column("fleet", name, nullable=False),
        sa.Column("device", name, nullable=False),
        sa.Column("session", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("baselines", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device", name=op.f("pk_telemetry_marks")),
    )
    op.create_table(
        "alarms",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fleet", name, nullable=False),
        sa.Column("device", name, nullable=False),
        sa.Column("model", name, nullable=False),
        sa.Column("kind", sa.String(length=160), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alarms")),
    )
    op.create_index(op.f("ix_alarms_fleet_device"), "alarms", ["fleet", "device"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("alarms", "telemetry_marks", "telemetry_hours"):
        op.drop_table(table)

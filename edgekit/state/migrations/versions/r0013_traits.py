"""Revision 0013: a digest of what plans judge in a report, so that equal devices are judged once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column; it is empty, and devices are judged one by one, until they report again."""
    op.add_column("reports", sa.Column("traits", sa.String(length=64), nullable=False, server_default=""))
    op.create_index(op.f("ix_reports_fleet_device_traits"), "reports", ["fleet", "device", "traits"])


def downgrade() -> None:
    """Drop the column."""
    op.drop_index(op.f("ix_reports_fleet_device_traits"), table_name="reports")
    op.drop_column("reports", "traits")

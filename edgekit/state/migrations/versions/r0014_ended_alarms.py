"""Revision 0014: who ended an alarm by hand and why, and alarms that are held until what they found has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the columns; alarms that have ended before are not held."""
    op.add_column("alarms", sa.Column("ended_by", sa.Text(), nullable=False, server_default=""))
    op.add_column("alarms", sa.Column("reason", sa.Text(), nullable=False, server_default=""))
    op.add_column("alarms", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop the columns; held alarms are then raised again."""
    for name in ("held", "reason", "ended_by"):
        op.drop_column("alarms", name)

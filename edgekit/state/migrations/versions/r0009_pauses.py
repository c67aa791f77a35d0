"""Revision 0009: the pause of a whole fleet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "fleet_pauses",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", name=op.f("pk_fleet_pauses")),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("fleet_pauses")

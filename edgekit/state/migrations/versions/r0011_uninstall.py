"""Revision 0011: the models that an assignment removes from a device."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column."""
    op.add_column("assignments", sa.Column("uninstall", sa.Text(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop the column; devices keep the models that they have not removed yet."""
    op.drop_column("assignments", "uninstall")

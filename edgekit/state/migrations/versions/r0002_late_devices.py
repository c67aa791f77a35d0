"""Revision 0002: count the devices of a rollout that may still succeed after its end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, and count the devices of the rollouts that have ended."""
    op.add_column("rollouts", sa.Column("undecided", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE rollouts SET undecided = (SELECT count(*) FROM rollout_devices WHERE rollout_devices.rollout = "
        "rollouts.id AND rollout_devices.state IN ('TOLD', 'FAILED'))"
    )


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("rollouts", "undecided")

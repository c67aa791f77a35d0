"""Revision 0012: which controller leads, the controllers that run, and when events were sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the tables and the column."""
    op.add_column("events", sa.Column("sent", sa.Double(), nullable=False, server_default="0"))
    op.create_table(
        "leaders",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("controller", sa.String(63), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", name=op.f("pk_leaders")),
    )
    op.create_table(
        "controllers",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "name", name=op.f("pk_controllers")),
    )


def downgrade() -> None:
    """Drop the tables and the column; running controllers fill them anew."""
    op.drop_column("events", "sent")
    op.drop_table("controllers")
    op.drop_table("leaders")

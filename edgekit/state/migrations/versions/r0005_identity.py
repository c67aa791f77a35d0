"""Revision 0005: the signed bytes of each device's last report, quarantined devices, and removed ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("reports", sa.Column("payload", sa.LargeBinary(), nullable=True))
    op.add_column("devices", sa.Column("quarantined", sa.Double(), nullable=True))
    op.add_column("devices", sa.Column("quarantine_reason", sa.Text(), nullable=False, server_default=""))
    name = sa.String(length=63)
    op.create_table(
        "removed_devices",
        sa.Column("fleet", name, nullable=False),
        sa.Column("name", name, nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("removed", sa.Double(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "name", name=op.f("pk_removed_devices")),
    )


def downgrade() -> None:
    """Drop the columns and the table."""
    op.drop_table("removed_devices")
    op.drop_column("devices", "quarantine_reason")
    op.drop_column("devices", "quarantined")
    op.drop_column("reports", "payload")

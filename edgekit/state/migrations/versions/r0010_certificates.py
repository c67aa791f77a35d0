"""Revision 0010: certificates of the fleet's authority, and enrollment codes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create both tables."""
    name = sa.String(length=63)
    op.create_table(
        "certificates",
        sa.Column("fleet", name, nullable=False),
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("issued", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "serial", name=op.f("pk_certificates")),
    )
    op.create_table(
        "join_codes",
        sa.Column("fleet", name, nullable=False),
        sa.Column("token", sa.String(length=16), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("left", sa.Integer(), nullable=False),
        sa.Column("name", name, nullable=False),
        sa.Column("target", name, nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "token", name=op.f("pk_join_codes")),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("join_codes")
    op.drop_table("certificates")

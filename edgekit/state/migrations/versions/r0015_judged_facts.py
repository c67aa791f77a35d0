"""Revision 0015: digests of what plans judge are made anew, because they hold more facts now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_REPORTS = sa.table("reports", sa.column("traits", sa.String))


def upgrade() -> None:
    """Empty them: devices of one old digest may differ. They are judged one by one until they report again."""
    op.execute(_REPORTS.update().values(traits=""))


def downgrade() -> None:
    """Empty them too, for the earlier rule."""
    upgrade()

"""Helpers of the table classes: transactions, JSON columns, and insert-or-update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.errors import DataError, UnavailableError

Fence = Callable[[sa.Connection], None]  # raises at the start of a writing transaction that must not be made


class FleetTable:
    """Base of the table classes: reads and writes the rows of one fleet.

    Args:
        engine: The database.
        fleet: Name of the fleet.
        author: Who makes changes, for the audit log: user and host of a command, or a controller.
    """

    def __init__(self, engine: sa.Engine, fleet: str, *, author: str = "unknown") -> None:
        self._engine = engine
        self._fleet = fleet
        self._author = author

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with wrapped_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with wrapped_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            fence: Fence | None = connection.get_execution_options().get("fence")
            with connection.begin():
                if fence is not None:
                    fence(connection)
                yield connection


_NOTHING: Mapping[str, Any] = {}


def put(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    on_insert: Mapping[str, Any] = _NOTHING,
    only_if: sa.ColumnElement[bool] | None = None,
) -> bool:
    """Insert a row, or update it if it exists and `only_if` holds for it.

    This is one SQL statement: when two controllers write the same new row at once, both succeed and `only_if` decides
    which values stay.

    Args:
        connection: An open transaction.
        table: The table.
        key: The primary key.
        values: Columns to write.
        on_insert: More columns for a new row.
        only_if: Condition on the existing row; None always updates.

    Returns:
        True if a row was written.
    """
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = kind.insert(table).values(**key, **on_insert, **values)
    upsert = row.on_conflict_do_update(index_elements=list(key), set_=dict(values), where=only_if)
    # Without the option, SQLAlchemy gives no count for an INSERT on PostgreSQL.
    return connection.execute(upsert, execution_options={"preserve_rowcount": True}).rowcount > 0


def to_json(value: Any) -> str:
    """Encode `value` for a JSON column."""
    return msgspec.json.encode(value, order="sorted").decode()


def untrusted_json(value: msgspec.Struct) -> str:
    """Encode a device's message for a JSON column, and check that it can be read back.

    Raises:
        DataError: it holds a value that JSON cannot (NaN, unknown types, too deep nesting).
    """
    try:
        text = to_json(value)
        msgspec.json.decode(text, type=type(value))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise DataError(f"{type(value).__name__} cannot be stored: {error}") from error
    return text


def untrusted_text(text: str, limit: int) -> str:
    """The first `limit` characters of a device's text, with NUL replaced because PostgreSQL refuses it."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:limit]


@contextlib.contextmanager
def wrapped_errors() -> Iterator[None]:
    """Raise UnavailableError where the database did not answer, and DataError where it refuses a value."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        raise UnavailableError(f"the database did not answer: {getattr(error, 'orig', None) or error}") from error
    except (sa.exc.DataError, sa.exc.IntegrityError, OverflowError) as error:
        # A number that is no number, or too large: nothing of the transaction was stored.
        raise DataError(f"the database refuses a value: {getattr(error, 'orig', None) or error}") from error

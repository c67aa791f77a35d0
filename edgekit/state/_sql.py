"""What the parts of the fleet state share: transactions, JSON columns, writing a row that may be there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.errors import DataError, UnavailableError

MAX_INTEGER = 2**53  # the largest number that every database, JSON reader and language here agrees on


class Part:
    """One part of the fleet state.

    Args:
        engine: The database.
        fleet: Which fleet's rows are meant.
    """

    def __init__(self, engine: sa.Engine, fleet: str) -> None:
        self._engine = engine
        self._fleet = fleet

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _explained(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                yield connection


_NOTHING: Mapping[str, Any] = {}


def put(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    at_first: Mapping[str, Any] = _NOTHING,
    only_if: sa.ColumnElement[bool] | None = None,
) -> bool:
    """Update the row with the primary `key` where `only_if` holds for it, or insert it, then with `at_first` too.

    One statement, so that two controllers that hear of a new device at once both succeed, and the newer word stays.

    Returns:
        Whether anything was written.
    """
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = kind.insert(table).values(**key, **at_first, **values)
    upsert = row.on_conflict_do_update(index_elements=list(key), set_=dict(values), where=only_if)
    return connection.execute(upsert).rowcount > 0


def to_json(value: Any) -> str:
    """A JSON column's text."""
    return msgspec.json.encode(value, order="sorted").decode()


def outside_json(value: msgspec.Struct) -> str:
    """A JSON column's text of what came from outside, once it is seen that it can be read back.

    Raises:
        DataError: it holds what JSON cannot (NaN, foreign types, bottomless nesting).
    """
    try:
        text = to_json(value)
        msgspec.json.decode(text, type=type(value))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise DataError(f"{type(value).__name__} cannot be kept: {error}") from error
    return text


def outside_text(text: str, limit: int) -> str:
    """Text that came from outside, of at most `limit` characters and without the one that PostgreSQL refuses."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:limit]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        raise UnavailableError(f"the database did not answer: {getattr(error, 'orig', None) or error}") from error

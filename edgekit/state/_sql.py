"""Helpers of the table classes: transactions, JSON columns, and insert-or-update."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.errors import DataError, UnavailableError
from edgekit.state.foreign import driver_text, refuses_changes

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
        shared = _SHARED.get()
        if shared is not None and shared.engine is self._engine:
            with shared.joined() as connection:
                yield connection
            return
        with wrapped_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        shared = _SHARED.get()
        if shared is not None and shared.engine is self._engine:
            with shared.joined() as connection:
                yield connection
            return
        with _transaction(self._engine) as connection:
            yield connection


class _Shared:
    """A transaction that several reads and writes of one thread share.

    Args:
        engine: The tables of this engine take part.
        connection: Its connection, in a writing transaction.

    Attributes:
        error: The error of the first step that failed; the transaction is not committed then.
    """

    def __init__(self, engine: sa.Engine, connection: sa.Connection) -> None:
        self.engine, self.connection = engine, connection
        self.error: Exception | None = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[sa.Connection]:
        """The connection for one step. Raises the error of an earlier step: what it wrote may be half of it."""
        if self.error is not None:
            raise self.error
        try:
            with wrapped_errors():
                yield self.connection
        except Exception as error:
            self.error = error
            raise


_SHARED: ContextVar[_Shared | None] = ContextVar("shared transaction", default=None)


@contextlib.contextmanager
def together(engine: sa.Engine) -> Iterator[None]:
    """Make one transaction of all that this thread reads and writes inside the block: all of it is stored, or nothing.

    Raises:
        UnavailableError: the database did not answer.
        Exception: the first error of a step, also where the block went on after it.
    """
    with _transaction(engine) as connection:
        shared = _Shared(engine, connection)
        token = _SHARED.set(shared)
        try:
            yield
        finally:
            _SHARED.reset(token)
        if shared.error is not None:
            raise shared.error


@contextlib.contextmanager
def _transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    with wrapped_errors(), engine.connect() as connection:
        connection = connection.execution_options(writes=True)
        fence: Fence | None = connection.get_execution_options().get("fence")
        with connection.begin():
            if fence is not None:
                fence(connection)
            yield connection


_NOTHING: Mapping[str, Any] = {}


Condition = Callable[[Any], sa.ColumnElement[bool]]


def put(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    on_insert: Mapping[str, Any] = _NOTHING,
    only_if: Condition | None = None,
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
        only_if: A function of a module that makes the condition on the existing row from the columns of the new row;
            None always updates.

    Returns:
        True if a row was written.
    """
    upsert = _upsert(connection.dialect.name, table, tuple(key), tuple(values), only_if)
    # Without the option, SQLAlchemy gives no count for an INSERT on PostgreSQL.
    row = {**key, **on_insert, **values}
    return connection.execute(upsert, row, execution_options={"preserve_rowcount": True}).rowcount > 0


def put_all(
    connection: sa.Connection,
    table: sa.Table,
    key: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    on_insert: Mapping[str, Any] = _NOTHING,
    only_if: Condition | None = None,
) -> None:
    """As `put`, for many rows with the same columns.

    Args:
        connection, table, on_insert, only_if: As `put`.
        key: Names of the columns of the primary key.
        rows: The key and the columns to write, of each row; of rows with one key, each comes after the ones before.
    """
    if rows:
        values = tuple(name for name in rows[0] if name not in key)
        upsert = _upsert(connection.dialect.name, table, tuple(key), values, only_if)
        connection.execute(upsert, [{**row, **on_insert} for row in rows])


def put_new(connection: sa.Connection, table: sa.Table, key: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows where there are none with their keys, so that they can be locked; others stay as they are.

    Two transactions cannot lock a row that is not there: both would read nothing, and the second would overwrite.
    """
    put_all(connection, table, key, rows, only_if=_never)


def _never(row: Any) -> sa.ColumnElement[bool]:
    return sa.false()


@functools.lru_cache(maxsize=256)  # building a statement takes longer than running it
def _upsert(
    dialect: str,
    table: sa.Table,
    key: tuple[str, ...],
    values: tuple[str, ...],
    only_if: Condition | None,
) -> sa.Insert:
    kind = postgresql if dialect == "postgresql" else sqlite
    row = kind.insert(table)
    where = only_if(row.excluded) if only_if is not None else None
    upsert: sa.Insert = row.on_conflict_do_update(
        index_elements=list(key), set_={name: row.excluded[name] for name in values}, where=where
    )
    return upsert


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
    """Raise UnavailableError where the database did not answer or is read-only, DataError where it refuses a value."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        raise UnavailableError(
            f"the database did not answer: {driver_text(error)}",
            advice="See that it runs and that its disk has space. Controllers and devices go on by themselves then.",
        ) from error
    except (sa.exc.InternalError, sa.exc.ProgrammingError) as error:
        if not refuses_changes(error.orig):
            raise
        raise UnavailableError(
            f"the database accepts no changes: {driver_text(error)}",
            advice="Connect to the primary server, as a user who may write. Where the URL names several hosts, add "
            "target_session_attrs=read-write.",
        ) from error
    except (sa.exc.DataError, sa.exc.IntegrityError, OverflowError) as error:
        # A number that is no number, or too large: nothing of the transaction was stored.
        raise DataError(f"the database refuses a value: {driver_text(error)}") from error

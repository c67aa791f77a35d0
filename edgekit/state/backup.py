"""Backups of the whole database as portable rows: written while controllers run, restored into an empty database.

A backup holds one transaction's view. SQLite and PostgreSQL read each other's. A backup of an older revision is
restored at that revision and then migrated.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from edgekit.errors import DataError, SettingsError, UnavailableError
from edgekit.state.foreign import driver_text
from edgekit.state.tables import connect_database, migration_config

AT_ONCE = 500
_VERSIONS = "alembic_version"


def dump_database(engine: sa.Engine, folder: Path) -> tuple[str, dict[str, int]]:
    """Write each table to ``folder/<table>.jsonl``, all as they were at one moment.

    Returns:
        The revision of the database, and the number of rows by table.

    Raises:
        UnavailableError: the database did not answer.
    """
    isolation: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    counts: dict[str, int] = {}
    try:
        with engine.connect().execution_options(**isolation) as connection, connection.begin():
            revision = MigrationContext.configure(connection).get_current_revision() or ""
            for table in _tables(connection):
                with (folder / f"{table.name}.jsonl").open("wb") as file:
                    counts[table.name] = 0
                    for row in connection.execute(table.select()).mappings():
                        file.write(msgspec.json.encode(dict(row)) + b"\n")
                        counts[table.name] += 1
    except sa.exc.SQLAlchemyError as error:
        raise UnavailableError(f"the database cannot be read: {driver_text(error)}") from error
    return revision, counts


def load_database(
    url: str, folder: Path, revision: str, also: Callable[[sa.Connection], object] = lambda connection: None
) -> dict[str, int]:
    """Make the tables of `revision` in an empty database, fill them from `folder`, and bring them up to date.

    Args:
        url: URL of the empty database.
        folder: Folder that `dump_database` filled.
        revision: Revision of the database that was dumped.
        also: Called with the transaction after that, for example to write an entry of the audit log.

    Returns:
        The number of rows by table.

    Raises:
        SettingsError: the database is not empty, or the backup is newer than this edgekit.
        DataError: a file cannot be read, or a row does not fit; nothing was restored.
        UnavailableError: the database did not answer.
    """
    engine = connect_database(url)
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            if sa.inspect(connection).get_table_names():
                raise SettingsError(
                    f"the database {engine.url.render_as_string(hide_password=True)} is not empty",
                    advice="Restore into a new database: name another one with `database`, or move this one away.",
                )
            counts = _fill(connection, folder, revision)
            also(connection)
            return counts
    except (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.StatementError, msgspec.MsgspecError) as error:
        if isinstance(error, sa.exc.OperationalError):
            raise UnavailableError(f"the database did not answer: {driver_text(error)}") from error
        raise DataError(f"the backup's rows do not fit: {driver_text(error)}") from error
    finally:
        engine.dispose()


def _fill(connection: sa.Connection, folder: Path, revision: str) -> dict[str, int]:
    config = migration_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
        raise SettingsError(
            f"the backup's database has revision {revision!r}, which this edgekit does not know",
            advice="A newer edgekit wrote it: update this edgekit.",
        )
    command.upgrade(config, revision)
    counts = {}
    for table in _tables(connection):
        counts[table.name] = 0
        for rows in _batches(folder / f"{table.name}.jsonl", table):
            connection.execute(table.insert(), rows)
            counts[table.name] += len(rows)
        if connection.dialect.name == "postgresql" and "id" in table.c:
            highest = f"(SELECT max(id) FROM {table.name})"  # noqa: S608  a table of the code, not of the backup
            connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {highest})")
    command.upgrade(config, "head")
    return counts


def _tables(connection: sa.Connection) -> list[sa.Table]:
    found = sa.MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != _VERSIONS]


def _batches(path: Path, table: sa.Table) -> Iterator[list[dict[str, Any]]]:
    if not path.exists():
        raise DataError(f"the backup has no rows of table {table.name}")
    binary = {column.name for column in table.c if isinstance(column.type, sa.LargeBinary)}
    flags = {column.name for column in table.c if isinstance(column.type, sa.Boolean)}
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            row = msgspec.json.decode(line, type=dict[str, Any])
            for name in binary & row.keys():
                row[name] = None if row[name] is None else base64.b64decode(row[name])
            for name in flags & row.keys():
                row[name] = None if row[name] is None else bool(row[name])
            rows.append(row)
            if len(rows) >= AT_ONCE:
                yield rows
                rows = []
    if rows:
        yield rows

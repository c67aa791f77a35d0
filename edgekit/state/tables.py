"""The tables of the fleet state, and opening a database: its URL, its pragmas, its migrations.

What is read and written there is in `edgekit.state`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from edgekit.errors import SettingsError, UnavailableError

BUSY_SECONDS = 15
MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

NAME = sa.String(63)
JSON_TEXT = sa.Text  # written and read by msgspec, never queried inside

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("fleet", NAME, primary_key=True),
    sa.Column("name", NAME, primary_key=True),
    sa.Column("target", NAME, nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("labels", JSON_TEXT, nullable=False),
    sa.Column("enrolled", sa.Double, nullable=False),
)

# The last report of each device.
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("fleet", NAME, primary_key=True),
    sa.Column("device", NAME, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("received", sa.Double, nullable=False, index=True),
    sa.Column("body", JSON_TEXT, nullable=False),
)

presence = sa.Table(
    "presence",
    metadata,
    sa.Column("fleet", NAME, primary_key=True),
    sa.Column("device", NAME, primary_key=True),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("session", sa.BigInteger, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
    sa.Column("telemetry", JSON_TEXT, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME, nullable=False),
    sa.Column("model", NAME, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Column("wake_at", sa.Double),
    sa.Column("body", JSON_TEXT, nullable=False),  # the Rollout without its devices
    sa.Column("entries", JSON_TEXT, nullable=False),  # assignment entries by target
    sa.Index(None, "fleet", "state"),
)

rollout_devices = sa.Table(
    "rollout_devices",
    metadata,
    sa.Column("rollout", sa.Integer, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("progress", JSON_TEXT, nullable=False),
    sa.Column("previous", JSON_TEXT),  # the entry that it had before it was told; NULL for none
)

# What each device should run. `payload` is the signed document of `version`, NULL until it is signed.
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("fleet", NAME, primary_key=True),
    sa.Column("device", NAME, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("entries", JSON_TEXT, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("published", sa.BigInteger, nullable=False),
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME, nullable=False),
    sa.Column("device", NAME, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(63), nullable=False),
    sa.Column("args", JSON_TEXT, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("ok", sa.Boolean),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("detail", JSON_TEXT, nullable=False),
    sa.UniqueConstraint("fleet", "device", "number"),
    sa.Index(None, "fleet", "state"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME, nullable=False),
    sa.Column("device", NAME, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(63), nullable=False),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("error", sa.String(63), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("detail", JSON_TEXT, nullable=False),
    sa.Index(None, "fleet", "device"),
)


def open_database(url: str) -> sa.Engine:
    """Connect to ``sqlite:///file`` or ``postgresql+driver://...`` and bring its tables up to date.

    Transactions begun with the execution option ``writes=True`` hold SQLite's write lock from their first statement,
    so that what they read is still true when they write.

    Raises:
        SettingsError: the URL cannot be understood, its driver is missing, or the database is newer than this edgekit.
        UnavailableError: the database cannot be reached or migrated.
    """
    try:
        engine = sa.create_engine(url, **_engine_options(url))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(
            f"database {_without_password(url)!r} cannot be used: {error}",
            advice="Write sqlite:///file.db, or postgresql+psycopg://user@host/name with psycopg installed.",
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine)
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise UnavailableError(
            f"database {_without_password(url)} cannot be opened: {getattr(error, 'orig', None) or error}"
        ) from error
    except SettingsError:
        engine.dispose()
        raise
    return engine


def migration_config(connection: sa.Connection | None = None) -> Config:
    """Alembic's configuration for the migrations that are packaged with edgekit."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _migrate(engine: sa.Engine) -> None:
    config = migration_config()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":  # two processes that start at once
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7235430)"))
        found = MigrationContext.configure(connection).get_current_revision()
        if found == scripts.get_current_head():
            return
        if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
            raise SettingsError(
                f"the database is at revision {found}, which this edgekit does not know (its newest is "
                f"{scripts.get_current_head()})",
                advice="It was written by a newer edgekit: update this one.",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _engine_options(url: str) -> dict[str, Any]:
    if not url.startswith("sqlite"):
        return {"pool_pre_ping": True}
    return {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a published assignment version must not be forgotten in a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url

"""The tables of the fleet state, and opening a database: URL, pragmas and migrations.

The classes that read and write these tables are in the modules beside this one.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from edgekit.errors import SettingsError, UnavailableError
from edgekit.state.foreign import driver_text, refuses_changes

BUSY_SECONDS = 15.0
RETRY_SECONDS = 0.02
MIGRATIONS = Path(__file__).parent / "migrations"

T = TypeVar("T")

# A server that vanished is noticed after about ten seconds instead of minutes.
_NOTICE_LOSS = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

MAX_KEY, MAX_VALUE = 63, 255
NAME_COLUMN = sa.String(63)
JSON_TEXT = sa.Text  # encoded and decoded with msgspec; queries never look inside

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("name", NAME_COLUMN, primary_key=True),
    sa.Column("target", NAME_COLUMN, nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("labels", JSON_TEXT, nullable=False),
    sa.Column("enrolled", sa.Double, nullable=False),
    sa.Column("quarantined", sa.Double),  # wall clock seconds of the quarantine; NULL for none
    sa.Column("quarantine_reason", sa.Text, nullable=False, server_default=""),
    sa.Column("quarantine_told", sa.Boolean, nullable=False, server_default=sa.false()),
)

# Devices that were removed and not enrolled anew: they are refused, and told so once.
removed_devices = sa.Table(
    "removed_devices",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("name", NAME_COLUMN, primary_key=True),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("removed", sa.Double, nullable=False),
    sa.Column("told", sa.Boolean, nullable=False),
)

# Certificates that the fleet's authority has signed.
certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("issued", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("revoked", sa.Double, nullable=False),  # 0 for one that is not revoked
)

# Codes with which devices enroll themselves.
join_codes = sa.Table(
    "join_codes",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("token", sa.String(16), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("left", sa.Integer, nullable=False),
    sa.Column("name", NAME_COLUMN, nullable=False),
    sa.Column("target", NAME_COLUMN, nullable=False),
    sa.Column("labels", JSON_TEXT, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

# The last report of each device.
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("received", sa.Double, nullable=False, index=True),
    sa.Column("body", JSON_TEXT, nullable=False),
    sa.Column("indexed", sa.String(64), nullable=False, server_default=""),  # digest of its rows in `attributes`
    sa.Column("payload", sa.LargeBinary),  # the report as the device signed it; NULL from before revision 0005
    sa.Column("traits", sa.String(64), nullable=False, server_default=""),  # digest of what plans judge; empty: unknown
    sa.Index(None, "fleet", "device", "traits"),
)

# What filters select devices by: one row for each label, scalar fact, model version and so on.
attributes = sa.Table(
    "attributes",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("key", sa.String(MAX_KEY), primary_key=True),
    sa.Column("value", sa.String(MAX_VALUE), nullable=False),
    sa.Column("sorted", sa.String(32), nullable=False),  # a version as a text that sorts like it; else empty
    sa.Column("number", sa.Double),  # the value as a number; NULL where it is none
    sa.Index(None, "fleet", "kind", "key", "value"),
)

groups = sa.Table(
    "groups",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("name", NAME_COLUMN, primary_key=True),
    sa.Column("filter", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("what", sa.String(63), nullable=False),
    sa.Column("subject", sa.String(127), nullable=False),
    sa.Column("before", JSON_TEXT, nullable=False),
    sa.Column("after", JSON_TEXT, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.UniqueConstraint("fleet", "number"),
)

standing = sa.Table(
    "standing",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("model", NAME_COLUMN, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("channel", NAME_COLUMN, nullable=False),
    sa.Column("cohort", JSON_TEXT, nullable=False),
    sa.Column("entries", JSON_TEXT, nullable=False),  # assignment entries by target
    sa.Column("per_hour", sa.Double, nullable=False),
    sa.Column("tokens", sa.Double, nullable=False),
    sa.Column("counted", sa.Double, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

fleet_pauses = sa.Table(
    "fleet_pauses",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)

presence = sa.Table(
    "presence",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("session", sa.BigInteger, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
    sa.Column("telemetry", JSON_TEXT, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("model", NAME_COLUMN, nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Column("wake_at", sa.Double),
    sa.Column("body", JSON_TEXT, nullable=False),  # the Rollout without its devices
    sa.Column("entries", JSON_TEXT, nullable=False),  # assignment entries by target
    sa.Column("undecided", sa.Integer, nullable=False, server_default="0"),  # devices that may still succeed late
    sa.Index(None, "fleet", "state"),
)

rollout_devices = sa.Table(
    "rollout_devices",
    metadata,
    sa.Column("rollout", sa.Integer, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("progress", JSON_TEXT, nullable=False),
    sa.Column("previous", JSON_TEXT),  # the device's entry before this rollout; NULL for none
)

# The assignment of each device. `payload` is the signed document of `version`, NULL until it is signed.
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("entries", JSON_TEXT, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("published", sa.BigInteger, nullable=False),
    sa.Column("uninstall", JSON_TEXT, nullable=False, server_default="[]"),
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("device", NAME_COLUMN, nullable=False),
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
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("device", NAME_COLUMN, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(63), nullable=False),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("error", sa.String(63), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("detail", JSON_TEXT, nullable=False),
    sa.Column("sent", sa.Double, nullable=False, server_default="0"),  # by the device's clock, to know repetitions
    sa.Index(None, "fleet", "device"),
)

# Which controller leads: the term rises with each leader, and each write of a leader checks it.
leaders = sa.Table(
    "leaders",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("controller", NAME_COLUMN, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)

# Controllers that run, or that ended without a word.
controllers = sa.Table(
    "controllers",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("name", NAME_COLUMN, primary_key=True),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
)

# Who may use the API of the controller; `token` is the sha256 of the operator's token.
operators = sa.Table(
    "operators",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("name", NAME_COLUMN, primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("token", sa.String(64), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.UniqueConstraint("token"),
)

# Receivers of rollout and alarm events; the queue is the audit log and the table of events, from `..._sent` on.
webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.String(127), nullable=False),
    sa.Column("kinds", JSON_TEXT, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("audit_sent", sa.BigInteger, nullable=False),  # number of the last audit entry that was delivered
    sa.Column("event_sent", sa.BigInteger, nullable=False),  # id of the last event that was delivered
    sa.Column("failures", sa.Integer, nullable=False),  # deliveries that failed since the last one that did not
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("delivered", sa.Double, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)

# The telemetry of each device, added up by the hour (wall clock seconds / 3600).
telemetry_hours = sa.Table(
    "telemetry_hours",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("hour", sa.BigInteger, primary_key=True),
    sa.Column("body", JSON_TEXT, nullable=False),
    sa.Column("judged", sa.Boolean, nullable=False),
    sa.Index(None, "fleet", "hour"),
)

# The last message of telemetry that was added for each device, and how its bundles began.
telemetry_marks = sa.Table(
    "telemetry_marks",
    metadata,
    sa.Column("fleet", NAME_COLUMN, primary_key=True),
    sa.Column("device", NAME_COLUMN, primary_key=True),
    sa.Column("session", sa.BigInteger, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("baselines", JSON_TEXT, nullable=False),
)

alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fleet", NAME_COLUMN, nullable=False),
    sa.Column("device", NAME_COLUMN, nullable=False),
    sa.Column("model", NAME_COLUMN, nullable=False),
    sa.Column("kind", sa.String(160), nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),  # NULL while it is open
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("ended_by", sa.Text, nullable=False, server_default=""),  # an operator; empty: it ended by itself
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("held", sa.Boolean, nullable=False, server_default=sa.false()),  # ended by hand, and it goes on
    sa.Index(None, "fleet", "device"),
)


def open_database(url: str, *, busy_seconds: float = BUSY_SECONDS) -> sa.Engine:
    """Connect to ``sqlite:///file`` or ``postgresql+driver://...`` and bring its tables up to date.

    Transactions with the execution option ``writes=True`` take SQLite's write lock at once, so that no other process
    changes the rows between their reads and writes.

    Args:
        url: The database.
        busy_seconds: Time to wait for a SQLite database that another connection locks.

    Raises:
        SettingsError: the URL is not valid, its driver is missing, or the database is newer than this edgekit.
        UnavailableError: the database cannot be reached or migrated.
    """
    engine = connect_database(url, busy_seconds=busy_seconds)
    try:
        _while_busy(lambda: _migrate(engine), busy_seconds)
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise UnavailableError(f"database {_without_password(url)} cannot be opened: {driver_text(error)}") from error
    except SettingsError:
        engine.dispose()
        raise
    return engine


def connect_database(url: str, *, busy_seconds: float = BUSY_SECONDS) -> sa.Engine:
    """Connect to a database as it is; arguments as `open_database`.

    Raises:
        SettingsError: the URL is not valid, or its driver is missing.
    """
    try:
        engine = sa.create_engine(url, **_engine_options(url, busy_seconds))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(
            f"database {_without_password(url)!r} cannot be used: {error}",
            advice="Write sqlite:///file.db, or postgresql+psycopg://user@host/name with psycopg installed.",
        ) from error
    sa.event.listen(engine, "handle_error", _leave_read_only)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", functools.partial(_prepare_sqlite, busy_seconds))
        sa.event.listen(engine, "begin", _begin_sqlite)
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
        if engine.dialect.name == "postgresql":  # another process may migrate at the same time
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7235430)"))
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision == scripts.get_current_head():
            return
        if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
            raise SettingsError(
                f"the database is at revision {revision}, expected at most {scripts.get_current_head()}",
                advice="A newer edgekit wrote it: update this edgekit.",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _engine_options(url: str, busy_seconds: float) -> dict[str, Any]:
    if not url.startswith("sqlite"):
        parsed = sa.make_url(url)
        arguments: dict[str, Any] = {name: value for name, value in _NOTICE_LOSS.items() if name not in parsed.query}
        if parsed.drivername.endswith("+psycopg"):
            arguments["prepare_threshold"] = None  # a pooler hands out sessions that prepared other statements
        return {"pool_pre_ping": True, "connect_args": arguments}
    return {"connect_args": {"timeout": busy_seconds, "check_same_thread": False}}


def _leave_read_only(context: sa.engine.ExceptionContext) -> None:
    """Connect anew after a refused change: after a failover, the address leads to another server."""
    if refuses_changes(context.original_exception):
        context.is_disconnect = True


def _prepare_sqlite(busy_seconds: float, connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: _begin_sqlite does
    cursor = connection.cursor()
    _while_busy(lambda: cursor.execute("PRAGMA journal_mode=WAL"), busy_seconds)
    cursor.execute("PRAGMA synchronous=FULL")  # a published assignment version must survive a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _while_busy(work: Callable[[], T], busy_seconds: float) -> T:
    """Repeat `work` while another connection locks the SQLite database, for up to `busy_seconds`.

    SQLite's own busy time-out does not cover this: SQLite fails at once where waiting could be a deadlock. Examples are
    the switch to the write-ahead log while another connection writes, and the removal of that log by the last one.
    """
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            return work()
        except (sqlite3.OperationalError, sa.exc.OperationalError) as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_SECONDS)


def _is_busy(error: sqlite3.OperationalError | sa.exc.OperationalError) -> bool:
    cause = error.orig if isinstance(error, sa.exc.OperationalError) else error
    return isinstance(cause, sqlite3.OperationalError) and "database is locked" in str(cause)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url

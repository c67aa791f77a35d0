"""The lock of the leader: PostgreSQL's advisory lock, or a locked file beside a SQLite database.

Both end with the process that holds them. The advisory lock also ends with its connection to the database.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from edgekit.errors import DiskError, UnavailableError
from edgekit.state._sql import wrapped_errors
from edgekit.storage.files import try_lock

# The server ends the session of a machine that vanished after 5 + 3 * 2 seconds without an answer.
_NOTICE_LOSS = (
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
    "SET idle_session_timeout = 0",
)


_NO_SESSIONS = (
    "the pooler before the database shares sessions, which cannot keep a leader's lock; connect to PostgreSQL itself, "
    "or to a pooler in session mode"
)


class LeaderLock(Protocol):
    """A lock that one controller of a fleet holds. Its methods may block and are called by one thread at a time.

    Attributes:
        sole: True if a controller that does not get the lock must not run at all.
    """

    sole: bool

    def hold(self) -> bool:
        """Take the lock, or check that it is still held; False if another controller holds it.

        Raises:
            UnavailableError: the database or the disk did not answer. A lock that was held is lost, also if a later
                call takes it again.
        """
        ...

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        ...


def leader_lock(engine: sa.Engine, fleet: str) -> LeaderLock:
    """The lock of a fleet's leader in a database, not taken yet."""
    if engine.dialect.name == "postgresql":
        return PostgresLock(engine, fleet)
    return FileLock(Path(f"{engine.url.database}.{fleet}.lock")) if engine.url.database else SoleLock()


class SoleLock:
    """For a controller that shares its database with no other: it always leads."""

    sole = True

    def hold(self) -> bool:
        """True."""
        return True

    def release(self) -> None:
        """Nothing is held."""


class FileLock:
    """A locked file, for a database that is a file of this machine.

    Args:
        path: The file; it holds the process id of the owner and stays when the lock ends.
    """

    sole = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def hold(self) -> bool:
        """As `LeaderLock.hold`."""
        if self._handle is not None:
            return True
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if try_lock(handle):
                    os.truncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    self._handle, handle = handle, -1
            finally:
                if handle >= 0:
                    os.close(handle)
        except OSError as error:
            raise DiskError(f"{self._path} cannot be locked: {error.strerror or error}") from error
        return self._handle is not None

    def release(self) -> None:
        """As `LeaderLock.release`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class PostgresLock:
    """An advisory lock of a session of its own.

    Args:
        engine: The database.
        fleet: Name of the fleet.
    """

    sole = False

    def __init__(self, engine: sa.Engine, fleet: str) -> None:
        self._engine, self._fleet = engine, fleet
        self._session: sa.Connection | None = None
        self._held = 0  # process id of the session that has the lock; 0 without

    def hold(self) -> bool:
        """As `LeaderLock.hold`."""
        try:
            with wrapped_errors():
                return self._hold(self._session or self._open())
        except Exception:
            self._close()
            raise

    def release(self) -> None:
        """As `LeaderLock.release`."""
        self._close()

    def _open(self) -> sa.Connection:
        session = self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        session.detach()  # never used by others, and closed for good
        self._check_sessions(session)
        for command in _NOTICE_LOSS:
            with contextlib.suppress(sa.exc.ProgrammingError):  # a setting that an older server does not know
                session.exec_driver_sql(command)
        return session

    def _check_sessions(self, session: sa.Connection) -> None:
        """Check that `session` keeps its server process, before a lock could be left behind in one of a pooler."""
        before = _process(session)
        with self._engine.connect() as other:
            between = _process(other)
        if between == before or _process(session) != before:
            raise UnavailableError(_NO_SESSIONS)

    def _hold(self, session: sa.Connection) -> bool:
        server = _process(session)
        if self._held and server != self._held:
            raise UnavailableError(f"the session changed under the leader's lock: {_NO_SESSIONS}")
        if not self._held:
            query = sa.text("SELECT pg_try_advisory_lock(hashtext('edgekit leader'), hashtext(:fleet))")
            self._held = server if session.execute(query, {"fleet": self._fleet}).scalar() else 0
        return bool(self._held)

    def _close(self) -> None:
        session, self._session, self._held = self._session, None, 0
        if session is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # a session that is gone cannot be closed
                session.close()


def _process(session: sa.Connection) -> int:
    """Id of the server's process that answers `session`."""
    return int(session.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

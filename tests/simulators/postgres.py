"""Starts a PostgreSQL server for tests, on a socket in a temporary folder, with the programs of Debian's package."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

USER = "postgres"  # the server refuses root
START_SECONDS = 60


def find_binaries() -> Path | None:
    """The folder of the newest `initdb` and `pg_ctl` on this machine; None without PostgreSQL."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda path: int(path.parent.name), default=None)


def missing() -> str:
    """The reason why no server can be started on this machine; empty if one can."""
    if find_binaries() is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0 and (shutil.which("runuser") is None or USER not in {one.pw_name for one in pwd.getpwall()}):
        return f"PostgreSQL refuses root, and there is no runuser or no user {USER}"
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg cannot be imported: {error}"
    return ""


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server, yield the URL of its empty database, and stop the server."""
    folder = Path(
        tempfile.mkdtemp(prefix="edgekit-postgres-")
    )  # not in pytest's folder, which other users cannot enter
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        _run("initdb", "-D", folder / "data", "-U", USER, "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        _start(folder)
        try:
            yield f"postgresql+psycopg://{USER}@/postgres?host={folder}"
        finally:
            _stop(folder)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def stopped(url: str) -> Iterator[None]:
    """Stop a server of `running_postgres` at once, as if its machine crashed, and start it again at the end."""
    folder = Path(str(sa.make_url(url).query["host"]))
    _stop(folder)
    try:
        yield
    finally:
        _start(folder)


def emptied(url: str) -> str:
    """Remove all tables of a database, and return its URL."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url


def _start(folder: Path) -> None:
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    log = folder / "log"
    _run("pg_ctl", "-D", folder / "data", "-l", log, "-o", options, "-w", "-t", str(START_SECONDS), "start")


def _stop(folder: Path) -> None:
    _run("pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")


def _run(program: str, *arguments: str | Path) -> None:
    folder = find_binaries()
    assert folder is not None
    as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
    words = [*as_user, str(folder / program), *map(str, arguments)]
    done = subprocess.run(
        words, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]

"""Starts PgBouncer before a PostgreSQL server of the tests, on a socket in the server's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tests.simulators import postgres

PORT = 6432  # of the socket's name; the pooler listens on no network
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def missing() -> str:
    """The reason why no pooler can be started on this machine; empty if one can."""
    return postgres.missing() or ("" if PROGRAM else "pgbouncer is not installed")


@contextlib.contextmanager
def running_pooler(url: str, mode: str) -> Iterator[str]:
    """Run a pooler before the server of `running_postgres`, and yield the URL through it.

    Args:
        url: URL of the server.
        mode: PgBouncer's `pool_mode`: ``session`` or ``transaction``.
    """
    folder = Path(str(sa.make_url(url).query["host"]))
    (folder / "users").write_text(f'"{postgres.USER}" ""\n')
    (folder / "pooler.ini").write_text(
        f"[databases]\npostgres = host={folder} user={postgres.USER}\n[pgbouncer]\nlisten_port = {PORT}\n"
        f"unix_socket_dir = {folder}\nauth_type = any\nauth_file = {folder}/users\npool_mode = {mode}\n"
    )
    as_user = ["-u", postgres.USER] if os.geteuid() == 0 else []
    assert PROGRAM is not None
    with (folder / "pooler.log").open("ab") as log:
        process = subprocess.Popen([PROGRAM, *as_user, folder / "pooler.ini"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not _listens(folder):
            assert process.poll() is None, (folder / "pooler.log").read_text()
            assert time.monotonic() < end, "the pooler does not listen"
            time.sleep(0.02)
        yield f"{url}&port={PORT}"
    finally:
        process.terminate()
        process.wait()


def _listens(folder: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / f".s.PGSQL.{PORT}"))
        return True
    return False

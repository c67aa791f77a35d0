"""CPU cost of the same transfer from nginx by HTTP range requests, for comparison."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results import Figure

RANGE_BYTES = 1024 * 1024
GB = 1e9
CONFIG = """
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  sendfile on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}/www; keepalive_requests 100000; }}
}}
"""


def figures(folder: Path, counts: tuple[int, ...], size: int) -> list[Figure]:
    """CPU seconds of nginx for each GB; empty, with a message on stderr, if nginx is not installed."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        print("skipped nginx: it is not installed", file=sys.stderr)
        return []
    home = folder / "nginx"
    (home / "www").mkdir(parents=True)
    home.chmod(0o755)
    folder.chmod(0o755)
    (home / "www" / "blob").write_bytes(os.urandom(size))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = home / "nginx.conf"
    config.write_text(CONFIG.format(folder=home, port=port))
    with subprocess.Popen([program, "-e", str(home / "error.log"), "-c", str(config)]) as server:
        try:
            _await(port)
            return [_measure(server.pid, port, count, size) for count in counts]
        finally:
            server.terminate()


def _measure(pid: int, port: int, count: int, size: int) -> Figure:
    before, begun = _cpu(pid), time.monotonic()
    asyncio.run(_fetch_all(port, count, size))
    wall = time.monotonic() - begun
    spent = (_cpu(pid) - before) / (count * size / GB)
    return Figure(f"nginx range, {count} x {size // 1_000_000} MB", spent, "CPU s/GB", note=f"{wall:.1f} s")


async def _fetch_all(port: int, count: int, size: int) -> None:
    await asyncio.gather(*(_fetch(port, size) for _ in range(count)))


async def _fetch(port: int, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for start in range(0, size, RANGE_BYTES):
        end = min(start + RANGE_BYTES, size)
        writer.write(f"GET /blob HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 206"):
            raise SystemExit(f"nginx answered {head[:40]!r}")
        await reader.readexactly(end - start)
    writer.close()


def _await(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise SystemExit("nginx did not start")


def _cpu(pid: int) -> float:
    """CPU seconds of nginx's processes since their start."""
    spent = 0
    for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        spent += int(fields[11]) + int(fields[12])
    return spent / os.sysconf("SC_CLK_TCK")

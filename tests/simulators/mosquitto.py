"""mosquitto with a configuration of the test's own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.mqtt.mosquitto import find_mosquitto


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def running_mosquitto(folder: Path, config: str, *ports: int) -> Iterator[subprocess.Popen]:
    """Run mosquitto with `config` until the end of the context; begins when it listens on all of `ports`."""
    path = folder / f"mosquitto-{ports[0]}.conf"
    path.write_text(config + ("user root\n" if os.geteuid() == 0 else ""))
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([find_mosquitto(), "-c", path], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not all(_listens(port) for port in ports):
            assert process.poll() is None, (folder / "mosquitto.log").read_text()
            assert time.monotonic() < end, "mosquitto does not listen"
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

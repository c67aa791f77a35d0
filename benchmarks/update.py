"""Cost of an update: CPU and memory for blocks on request and by broadcast, size of deltas, memory of the agent.

The broker is a real mosquitto. The block service of the controller is one process; the block fetchers of N devices are
another one, on the same machine. CPU is the sum of server and broker for each GB (10^9 bytes) that devices received.
A bare publisher sends as many bytes through the same kind of broker in the same run, and CPU is compared with its CPU.
The figures call a broadcast "waves".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import update_agent, update_deltas, update_nginx
from benchmarks.results import Figure, publish
from edgekit.bundle.manifest import BLOCK_BYTES, FileEntry, file_entry
from edgekit.mqtt.broker import start_broker
from edgekit.registry import blob_name
from edgekit.storage.stores import open_store

BLOB_BYTES = 20 * 1000 * 1000
LARGE_BYTES = 200 * 1000 * 1000
DEVICES = (1, 10, 100, 300)
BUDGET_BYTES = 16 * 1024**2
LOSS = 0.05
GB = 1e9
MIB = 1024**2


def main() -> None:
    """Run the benchmark and write ``update.json``."""
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-update-") as name:
        folder = Path(name)
        figures = asyncio.run(_transfers(folder))
        figures += update_nginx.figures(folder, DEVICES, BLOB_BYTES)
        figures += update_deltas.figures(folder)
        figures += update_agent.figures(folder)
    publish("update", figures)


async def _transfers(folder: Path) -> list[Figure]:
    blob, large = (_put(folder, size) for size in (BLOB_BYTES, LARGE_BYTES))
    figures: list[Figure] = []
    memory: dict[str, float] = {}
    bare = {devices: await _measure_bare(folder, blob, devices) for devices in DEVICES[1:]}
    figures += bare.values()
    for mode, reach in (("requests", 2.5), ("waves", 0.5)):
        for devices in DEVICES if mode == "requests" else DEVICES[1:]:
            found = await _measure(folder, blob, devices, mode, memory)
            figures += found
            if devices in bare:
                ratio = found[0].value / bare[devices].value
                note = f"{found[0].value:.2f} over {bare[devices].value:.2f} CPU s/GB, server and broker"
                reached = reach if devices >= 100 else None  # fewer devices gain little from a broadcast
                figures.append(Figure(f"{found[0].figure}, over bare", ratio, "times", reached, note=note))
    figures += await _measure(folder, large, 1, "requests", memory)
    few, many = memory["requests, 1 x 20 MB"], memory["requests, 300 x 20 MB"]
    figures.append(Figure("server memory, 300 devices over 1", many / few, "ratio", 1.25, note="peaks, by request"))
    more = memory["requests, 1 x 200 MB"]
    figures.append(Figure("server memory, 200 MB over 20 MB", more / few, "ratio", 1.25, note="peaks, by request"))
    for devices, mode in ((3, "requests"), (30, "waves")):
        result = await _run(folder, blob, devices, mode, loss=LOSS)
        extra = 100 * (result["arrived"] / (devices * blob.size) - 1)
        note = f"{devices} devices, {LOSS:.0%} of all messages lost; bytes that came or were lost, over the blob's"
        figures.append(Figure(f"bytes more under loss, {mode}", extra, "%", 10.0, note=note))
    return figures


def _put(folder: Path, size: int) -> FileEntry:
    """Put a blob of random bytes into the store, and write its manifest entry for the clients."""
    data = os.urandom(size)
    entry = file_entry("blob", "model", data)
    open_store(f"file://{folder / 'store'}").put(blob_name(entry.sha256), data)
    (folder / f"{entry.sha256}.json").write_bytes(msgspec.json.encode(entry))
    return entry


async def _measure(folder: Path, blob: FileEntry, devices: int, mode: str, memory: dict[str, float]) -> list[Figure]:
    """Figures of one transfer; adds the peak memory of the server to `memory`."""
    result = await _run(folder, blob, devices, mode)
    moved = devices * blob.size / GB
    label = f"{mode}, {devices} x {blob.size // 1_000_000} MB"
    memory[label] = result["server_mib"]
    cpu = (result["server_cpu"] + result["broker_cpu"]) / moved
    note = (
        f"server {result['server_cpu']:.2f} s, broker {result['broker_cpu']:.2f} s; peaks: server "
        f"{result['server_mib']:.0f} MiB, broker {result['broker_mib']:.0f} MiB; {result['wall']:.1f} s"
    )
    if mode == "waves":
        note += f"; {100 * result['wave_blocks'] * BLOCK_BYTES / (devices * blob.size):.0f} % from the wave"
    figures = [Figure(label, cpu, "CPU s/GB", note=note)]
    if devices == 1:
        figures.append(
            Figure(
                f"{label}, one device", blob.size / result["wall"] / 1e6, "MB/s", 80.0, at_most=False, note="loopback"
            )
        )
    return figures


async def _measure_bare(folder: Path, blob: FileEntry, devices: int) -> Figure:
    """CPU of the bare publisher and its broker for each GB that its clients get."""
    result = await _run(folder, blob, devices, "bare")
    cpu = (result["server_cpu"] + result["broker_cpu"]) / (result["arrived"] / GB)
    note = f"publisher {result['server_cpu']:.2f} s, broker {result['broker_cpu']:.2f} s; {result['wall']:.1f} s"
    return Figure(f"bare publisher, {devices} x {blob.size // 1_000_000} MB", cpu, "CPU s/GB", note=note)


async def _run(folder: Path, blob: FileEntry, devices: int, mode: str, *, loss: float = 0.0) -> dict[str, Any]:
    """One transfer to all devices, with a new broker and a new server."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        async with await start_broker("127.0.0.1", 0, Path(own), kind="mosquitto") as broker:
            pid = broker._process.pid  # type: ignore[attr-defined]  # of mosquitto
            server_args: tuple[str, ...] = ("server", broker.url, f"file://{folder / 'store'}", str(BUDGET_BYTES))
            client_args: tuple[str, ...] = (
                "clients",
                broker.url,
                str(folder / f"{blob.sha256}.json"),
                str(devices),
                mode,
                str(loss),
            )
            if mode == "bare":
                server_args = ("bare-server", broker.url, str(devices), str(len(blob.blocks)))
                client_args = ("bare-clients", *server_args[1:])
            with _part(*server_args) as server, _part(*client_args) as clients:
                _expect(server, "ready")
                _expect(clients, "connected")
                before = cpu_seconds(server.pid), cpu_seconds(pid)
                assert clients.stdin is not None
                assert clients.stdout is not None
                clients.stdin.write("go\n")
                clients.stdin.flush()
                result: dict[str, Any] = json.loads(await asyncio.to_thread(clients.stdout.readline))
                after = cpu_seconds(server.pid), cpu_seconds(pid)
                result["server_mib"], result["broker_mib"] = peak_mib(server.pid), peak_mib(pid)
    result["server_cpu"], result["broker_cpu"] = (end - begin for end, begin in zip(after, before, strict=True))
    print(f"{mode} {devices}: {result}", file=sys.stderr)
    return result


@contextlib.contextmanager
def _part(*args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.update_parts", *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def _expect(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if line != word:
        raise SystemExit(f"a process of the benchmark printed {line!r}, expected {word!r}")


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process since its start, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The largest resident memory of a process so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

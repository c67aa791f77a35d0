"""A private broker on this machine: mosquitto as a child process, or the pure-Python amqtt inside this process.

It listens on loopback only, because it does not authenticate clients: mosquitto's ACL limits each device to its own
topics, but by a user name that the device states itself. Other machines need a broker with TLS and client certificates.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ctypes
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgekit.errors import MissingExtraError, SettingsError, TransportError
from edgekit.mqtt.broker_files import mosquitto_acl
from edgekit.mqtt.messages import MAX_PAYLOAD_BYTES
from edgekit.mqtt.mosquitto import find_mosquitto
from edgekit.waiting import within

if TYPE_CHECKING:
    from edgekit.mqtt.embedded_broker import EmbeddedAmqtt

KINDS = ("auto", "mosquitto", "amqtt")
START_SECONDS = 10.0
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
GET_MOSQUITTO = "Install mosquitto (`apt install mosquitto`, `brew install mosquitto`)"


class Broker(abc.ABC):
    """A running broker; also an async context manager that stops it.

    Attributes:
        url: ``mqtt://127.0.0.1:1883``.
        kind: ``mosquitto`` or ``amqtt``.
        title: Program, version and protocol, for output.
    """

    def __init__(self, url: str, kind: str, title: str) -> None:
        self.url = url
        self.kind = kind
        self.title = title

    @abc.abstractmethod
    async def stop(self) -> None:
        """End the broker; may be called again."""

    @abc.abstractmethod
    async def wait_ended(self) -> str:
        """Wait until the broker ends by itself, and return the reason."""

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def start_broker(host: str, port: int, folder: Path, *, kind: str = "auto") -> Broker:
    """Start a broker and wait until it accepts connections.

    Args:
        host: A loopback address.
        port: 0 takes any free port.
        folder: Folder of mosquitto's configuration, log and retained messages; made where missing.
        kind: ``mosquitto``, ``amqtt``, or ``auto``: mosquitto where it is installed, else amqtt.

    Raises:
        SettingsError: `host` is not a loopback address, or `kind` is unknown.
        TransportError: the port is taken, or mosquitto is missing or did not start.
        MissingExtraError: amqtt is needed and not installed.
    """
    if kind not in KINDS:
        raise SettingsError(f"broker kind is {kind!r}, expected one of {', '.join(KINDS)}")
    _check_loopback(host)
    program = find_mosquitto() if kind != "amqtt" else None
    if kind == "mosquitto" and program is None:
        raise TransportError("mosquitto is not installed", advice=f"{GET_MOSQUITTO}, or choose amqtt.")
    port = _free_port(host, port)
    if program is None:
        return await _start_amqtt(host, port)
    return await _start_mosquitto(program, host, port, _absolute(folder))


def mosquitto_config(host: str, port: int, folder: Path) -> str:
    """The configuration of a private mosquitto that keeps its files in `folder`."""
    lines = [
        f"listener {port} {host}",
        "allow_anonymous true",
        f"acl_file {folder / 'acl'}",
        "set_tcp_nodelay true",
        "max_queued_messages 1000",
        "max_queued_bytes 8388608",
        f"max_packet_size {MAX_PAYLOAD_BYTES + 64 * 1024}",
        "persistence true",
        f"persistence_location {folder}{os.sep}",
        "autosave_interval 300",
        f"log_dest file {folder / 'mosquitto.log'}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
        "sys_interval 0",
    ]
    if os.geteuid() == 0:
        lines.append("user root")  # else mosquitto changes to a user who may not write into `folder`
    return "\n".join(lines) + "\n"


# --- mosquitto


class _Mosquitto(Broker):
    def __init__(self, url: str, title: str, process: asyncio.subprocess.Process, log: Path) -> None:
        super().__init__(url, "mosquitto", title)
        self._process = process
        self._log = log

    async def stop(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await within(STOP_SECONDS, self._process.wait())
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def wait_ended(self) -> str:
        status = await self._process.wait()
        return f"mosquitto ended with status {status}: {_tail(self._log)}"


async def _start_mosquitto(program: str, host: str, port: int, folder: Path) -> Broker:
    title = await asyncio.to_thread(_write_files, program, host, port, folder)
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before the fork

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with (folder / "mosquitto.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            "-c",
            str(folder / "mosquitto.conf"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends mosquitto
            preexec_fn=end_with_parent,  # mosquitto also ends when this process is killed; else the port stays taken
        )
    broker = _Mosquitto(_url(host, port), title, process, folder / "mosquitto.log")
    async with contextlib.AsyncExitStack() as on_error:
        on_error.push_async_callback(broker.stop)
        try:
            await within(START_SECONDS, _wait_accepting(process, host, port))
        except asyncio.TimeoutError:
            problem = f"mosquitto did not accept connections within {START_SECONDS:g} s"
            raise TransportError(f"{problem}: {_tail(folder / 'mosquitto.log')}") from None
        on_error.pop_all()
    if process.returncode is not None:
        raise TransportError(await broker.wait_ended(), advice=f"Its log is {folder / 'mosquitto.log'}.")
    return broker


def _write_files(program: str, host: str, port: int, folder: Path) -> str:
    """Write configuration and ACL. Returns the broker's title."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mosquitto.conf").write_text(mosquitto_config(host, port, folder), encoding="utf-8")
        acl = folder / "acl"
        acl.touch(mode=0o600)
        acl.write_text(mosquitto_acl(), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"folder {folder} cannot be used for the broker: {error}") from error
    shown = subprocess.run([program, "-h"], capture_output=True, text=True, check=False, timeout=START_SECONDS)
    match = re.search(r"version (\S+)", shown.stdout)
    return f"mosquitto {match.group(1) if match else ''}".strip() + ", MQTT 5"


async def _wait_accepting(process: asyncio.subprocess.Process, host: str, port: int) -> None:
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "its log is empty"


# --- amqtt


class _Amqtt(Broker):
    def __init__(self, url: str, inner: EmbeddedAmqtt) -> None:
        super().__init__(url, "amqtt", f"amqtt {version('amqtt')}, MQTT 3.1.1")
        self._inner = inner
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        await self._inner.stop()
        if not self._ended.done():
            self._ended.set_result("amqtt was stopped")

    async def wait_ended(self) -> str:
        return await asyncio.shield(self._ended)


async def _start_amqtt(host: str, port: int) -> Broker:
    try:
        from edgekit.mqtt.embedded_broker import EmbeddedAmqtt
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "amqtt", "controller") from error
    inner = EmbeddedAmqtt()
    try:
        await inner.start(host, port)
    except OSError as error:
        raise TransportError(f"amqtt cannot listen on {_bracketed(host)}:{port}: {error}") from error
    return _Amqtt(_url(host, port), inner)


# --- addresses


def _check_loopback(host: str) -> None:
    if host == "localhost":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise SettingsError(
        f"{host} is not a loopback address, and this broker does not authenticate clients",
        advice="For other machines run a broker with TLS and client certificates (docs/topics.md) and give its URL.",
    )


def _free_port(host: str, port: int) -> int:
    """`port` if it is free, or any free port for 0.

    Raises:
        TransportError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise TransportError(
                f"cannot listen on {_bracketed(host)}:{port}: {error}",
                advice="The port may be taken; choose another port, or 0 for any free one.",
            ) from error
        free: int = probe.getsockname()[1]
        return free


def _url(host: str, port: int) -> str:
    return f"mqtt://{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

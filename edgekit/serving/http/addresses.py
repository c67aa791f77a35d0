"""Addresses of servers: host:port, loopback or not, and paths of UNIX sockets."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket as sockets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgekit.errors import SettingsError, UnavailableError

MAX_SOCKET_PATH = 107
SOCKET_MODE = 0o660


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[host]:port``.

    Raises:
        SettingsError: the address has another form.
    """
    host, _, port = address.rpartition(":")
    if (
        not host
        or not (port.isascii() and port.isdigit())
        or int(port) > 65535
        or (":" in host and not host.startswith("["))
    ):
        raise SettingsError(f"address is {address!r}, expected host:port, for example 127.0.0.1:8600")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """True for a loopback address and for the name localhost, which no other machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_networks(names: Iterable[str]) -> tuple[str, ...]:
    """The networks that addresses and networks name, for example 10.0.0.7 and 10.0.0.0/8.

    Raises:
        SettingsError: one is neither.
    """
    try:
        return tuple(str(ipaddress.ip_network(name, strict=False)) for name in names)
    except ValueError as error:
        raise SettingsError(
            f"trusted proxies: {error}", advice="Name addresses or networks, such as 10.0.0.0/8."
        ) from error


@functools.lru_cache(maxsize=1024)
def is_trusted(address: str, networks: tuple[str, ...]) -> bool:
    """True where an address is in one of the networks; False for what is no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


def make_room(path: Path) -> None:
    """Check that a socket can be bound at `path`, and remove a socket that a dead server left there.

    Raises:
        SettingsError: the path is too long.
        UnavailableError: a server answers there, or there is a file that is no socket.
    """
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise SettingsError(
            f"socket path {path} has {length} bytes, the limit is {MAX_SOCKET_PATH}; choose a shorter path"
        )
    _remove_stale(path)


@contextlib.contextmanager
def removed_after(path: Path) -> Iterator[None]:
    """Remove the socket at `path` when the block ends, unless another server has replaced it."""
    inode = path.stat().st_ino
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that no server answers; leave everything else."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnavailableError(f"{path} is in the way and is no socket", advice="Move it, or choose another path.")
    with contextlib.closing(sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UnavailableError(f"cannot use the socket {path}: {error.strerror or error}") from error
    raise UnavailableError(f"another server answers at {path}", advice="Stop it, or choose another path.")

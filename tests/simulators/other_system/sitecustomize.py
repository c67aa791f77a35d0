"""Lets a Linux process, and every Python process that it starts, look to edgekit as macOS or Windows do.

A test puts this folder on PYTHONPATH and names the system in PRETEND_SYSTEM (``darwin`` or ``win32``). What is missing
there is missing for edgekit's own modules only: the standard library and other packages know by themselves where they
run. ``win32`` also behaves as Windows where that shows: text files without a named encoding are refused, line ends
become CRLF, a file that is open can be neither renamed nor removed, folders cannot be opened, and names may not hold
``:``.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import functools
import io
import os
import platform
import signal
import socket
import sys
import types

SYSTEM = os.environ.get("PRETEND_SYSTEM", "")
WINDOWS = SYSTEM == "win32"
OURS = ("edgekit", "converters", "device_agents")
LIBRARY = os.path.dirname(os.__file__)
PACKAGES = os.path.join(LIBRARY, "site-packages")

HIDDEN_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"} if WINDOWS else set()
LINUX_ONLY = {
    "os": "memfd_create MFD_CLOEXEC MFD_ALLOW_SEALING sched_getaffinity sched_setaffinity posix_fallocate pidfd_open "
    "posix_fadvise copy_file_range eventfd O_TMPFILE",
    "fcntl": "F_ADD_SEALS F_SEAL_SHRINK",
    "socket": "SOCK_CLOEXEC SO_PEERCRED",
    "signal": "SIGSTKFLT SIGPWR",
}
POSIX_ONLY = {
    "os": "fork forkpty killpg getuid geteuid getgid getegid getpgid getsid setsid getpgrp sysconf uname pread pwrite "
    "fchmod fchown chown lchown mkfifo sync statvfs getloadavg nice wait WNOHANG register_at_fork posix_spawn "
    "O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_ASYNC O_NONBLOCK O_SYNC",
    "socket": "AF_UNIX SCM_RIGHTS send_fds recv_fds",
    "signal": "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGQUIT SIGSTOP SIGCONT SIGTSTP SIGPIPE alarm "
    "setitimer pthread_sigmask sigwait siginterrupt",
}


def caller() -> str:
    """The name of the module that asks, past the standard library; empty where that is another package."""
    frame = sys._getframe(2)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
        if name.partition(".")[0] in OURS:
            return name
        ours_or_library = file == __file__ or file.startswith("<frozen") or file.startswith(LIBRARY + os.sep)
        if not ours_or_library or file.startswith(PACKAGES):
            return ""
        frame = frame.f_back
    return ""


class Facade(types.ModuleType):
    """A module without what the other system's has not, and with some things that behave as there."""

    def __init__(self, real: types.ModuleType, hidden: set[str], instead: dict[str, object]) -> None:
        super().__init__(real.__name__)
        vars(self).update(_real=real, _hidden=hidden, _instead=instead)

    def __getattr__(self, name: str) -> object:
        if name in self._hidden:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on {SYSTEM}")
        return self._instead[name] if name in self._instead else getattr(self._real, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._real, name, value)


def names(module: str) -> set[str]:
    """What `module` lacks."""
    text = LINUX_ONLY.get(module, "") + " " + (POSIX_ONLY.get(module, "") if WINDOWS else "")
    return set(text.split())


# --- files


def full(path: object, dir_fd: int | None = None) -> str:
    """An absolute path."""
    text = os.fsdecode(path)
    if dir_fd is not None:
        text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
    return os.path.abspath(text)


def refuse_name(path: object) -> None:
    """Windows knows no such names."""
    for part in full(path).split("/"):
        if any(sign in part for sign in '<>:"|?*\\') or part.endswith((" ", ".")):
            raise OSError(errno.EINVAL, "Windows knows no such name", os.fsdecode(path))


def refuse_open(path: str) -> None:
    """Windows neither renames nor removes what this process has open or mapped."""
    held = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            held.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with real_open("/proc/self/maps", "rb") as maps:
        held |= {os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")) for line in maps if line.count(b"/")}
    within = [name for name in held if name == path or name.startswith(path + "/")]
    if any(not os.path.isdir(name) for name in within):
        raise PermissionError(errno.EACCES, f"it is open: {within[0]}", path)


unbound = functools.partial  # Python 3.10 keeps such functions in a class, where others would become methods
real_open, real_os_open, real_fsync = io.open, os.open, os.fsync


def text_options(mode: str, encoding: str | None, newline: str | None) -> str | None:
    """The line ends that Windows would write; refuses a text file without an encoding."""
    if "b" in mode:
        return newline
    if encoding in (None, "locale"):
        raise AssertionError("a text file is opened without an encoding, which is another one on Windows")
    return "\r\n" if newline is None and mode.strip("+t") != "r" else newline


def other_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):  # type: ignore[no-untyped-def]
    """`open`, as edgekit meets it there."""
    if caller():
        if not isinstance(file, int) and full(file).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, f"{SYSTEM} has no such file", os.fsdecode(file))
        if WINDOWS:
            if not isinstance(file, int):
                refuse_name(file)
            newline = text_options(mode, encoding, newline)
    return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def windows_os_open(path, flags, mode=0o777):  # type: ignore[no-untyped-def]
    """Windows opens no folders."""
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Windows opens no folders", os.fsdecode(path))
    refuse_name(path)
    return real_os_open(path, flags, mode)


def windows_fsync(handle: int) -> None:
    """Windows flushes only what may be written."""
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Windows flushes only what may be written")
    real_fsync(handle)


def windows_symlink(*_: object, **__: object) -> None:
    """An ordinary user may make no symbolic links."""
    error = OSError(errno.EPERM, "A required privilege is not held by the client")
    error.winerror = 1314  # type: ignore[attr-defined]
    raise error


def guarded(name: str) -> None:
    """Let one function of `os` refuse what Windows refuses."""
    real = getattr(os, name)
    two = name in ("rename", "replace")

    def checked(path, *more, dir_fd=None, **options):  # type: ignore[no-untyped-def]
        if caller():
            place = full(path, dir_fd)
            if not os.path.islink(place):
                refuse_open(place)
            if two:
                refuse_name(more[0])
                if name == "rename" and os.path.lexists(more[0]):
                    raise FileExistsError(errno.EEXIST, "Windows renames over nothing", os.fsdecode(more[0]))
                refuse_open(full(more[0]))
        return real(path, *more, **options) if dir_fd is None else real(path, *more, dir_fd=dir_fd, **options)

    function = unbound(checked)
    setattr(os, name, function)
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if real in known:
            known.add(function)


# --- what stands in


class MemoryApi:
    """kernel32, as far as edgekit asks it."""

    @staticmethod
    def GlobalMemoryStatusEx(pointer: object) -> int:
        """Fill in what the machine has; 0 where the length was not stated, as Windows wants it."""
        found = pointer._obj  # type: ignore[attr-defined]
        if found.length != 64:
            return 0
        page = os.sysconf("SC_PAGE_SIZE")
        found.total = page * os.sysconf("SC_PHYS_PAGES")
        found.available = page * os.sysconf("SC_AVPHYS_PAGES")
        return 1


def locking(handle: int, mode: int, count: int) -> None:
    """msvcrt's, as far as edgekit uses it."""
    assert (mode, count) == (2, 1)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


facades: dict[str, Facade] = {}
if SYSTEM:
    instead: dict[str, dict[str, object]] = {"sys": {"platform": SYSTEM}}
    if WINDOWS:
        instead["os"] = {"name": "nt", "open": windows_os_open, "fsync": windows_fsync, "O_BINARY": 0}
        instead["platform"] = {"system": lambda: "Windows", "machine": lambda: "AMD64", "processor": lambda: "AMD64"}
        instead["ctypes"] = {"windll": types.SimpleNamespace(kernel32=MemoryApi)}
    else:
        instead["platform"] = {"system": lambda: "Darwin", "processor": lambda: "arm"}
    for real in (os, signal, socket, sys, platform, fcntl, ctypes):
        facades[real.__name__] = Facade(real, names(real.__name__), instead.get(real.__name__, {}))
    if WINDOWS:
        facades["msvcrt"] = Facade(types.ModuleType("msvcrt"), set(), {"locking": locking, "LK_NBLCK": 2})
        os.symlink = unbound(windows_symlink)  # type: ignore[assignment]
        for function in ("rename", "replace", "unlink", "remove", "rmdir"):
            guarded(function)
    builtins.open = io.open = unbound(other_open)  # type: ignore[assignment]

    real_import = builtins.__import__

    def other_import(name, globals=None, locals=None, fromlist=(), level=0):  # type: ignore[no-untyped-def]
        """`import`, as edgekit meets it there."""
        asking = (globals or {}).get("__name__", "").partition(".")[0]
        if level == 0 and asking in OURS:
            if name.partition(".")[0] in HIDDEN_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r} on {SYSTEM}", name=name)
            if name in facades:
                return facades[name]
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = other_import  # type: ignore[assignment]

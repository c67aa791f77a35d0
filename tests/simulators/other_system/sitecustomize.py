"""Makes a Linux process, and each Python process that it starts, look like macOS or Windows to edgekit.

A test puts this folder on PYTHONPATH and sets PRETEND_SYSTEM to ``darwin`` or ``win32``. The functions of Linux are
hidden from edgekit's modules only, not from the standard library and other packages. ``win32`` also imitates the
behaviour of Windows: text files need an explicit encoding, line ends become CRLF, an open file can neither be renamed
nor removed, folders cannot be opened, and names must not contain ``:``.
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
    """The name of edgekit's module that called, directly or through the standard library; empty for other packages."""
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
    """A module that hides missing names of the other system, and replaces names that behave differently there."""

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
    """Names of `module` that the other system lacks."""
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
    """Refuse file names that Windows does not allow."""
    for part in full(path).split("/"):
        if any(sign in part for sign in '<>:"|?*\\') or part.endswith((" ", ".")):
            raise OSError(errno.EINVAL, "Windows does not allow this name", os.fsdecode(path))


def refuse_open(path: str) -> None:
    """Refuse to rename or remove a file that this process has open or mapped, like Windows."""
    opened = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            opened.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with real_open("/proc/self/maps", "rb") as maps:
        opened |= {os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")) for line in maps if line.count(b"/")}
    within = [name for name in opened if name == path or name.startswith(path + "/")]
    if any(not os.path.isdir(name) for name in within):
        raise PermissionError(errno.EACCES, f"the file is open: {within[0]}", path)


unbound = functools.partial  # Python 3.10 stores these functions in a class; a partial does not become a method
real_open, real_os_open, real_fsync = io.open, os.open, os.fsync


def text_options(mode: str, encoding: str | None, newline: str | None) -> str | None:
    """The line ends that Windows writes. Refuses a text file without an encoding."""
    if "b" in mode:
        return newline
    if encoding in (None, "locale"):
        raise AssertionError("a text file was opened without an encoding; the default differs on Windows")
    return "\r\n" if newline is None and mode.strip("+t") != "r" else newline


def other_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):  # type: ignore[no-untyped-def]
    """`open` as on the other system, for edgekit's modules."""
    if caller():
        if not isinstance(file, int) and full(file).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, f"{SYSTEM} has no such file", os.fsdecode(file))
        if WINDOWS:
            if not isinstance(file, int):
                refuse_name(file)
            newline = text_options(mode, encoding, newline)
    return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def windows_os_open(path, flags, mode=0o777):  # type: ignore[no-untyped-def]
    """`os.open` that refuses folders, like Windows."""
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Windows cannot open folders", os.fsdecode(path))
    refuse_name(path)
    return real_os_open(path, flags, mode)


def windows_fsync(handle: int) -> None:
    """`os.fsync` that refuses a file opened only for reading, like Windows."""
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Windows flushes only writable files")
    real_fsync(handle)


def windows_symlink(*_: object, **__: object) -> None:
    """`os.symlink` that fails like for an ordinary user of Windows."""
    error = OSError(errno.EPERM, "A required privilege is not held by the client")
    error.winerror = 1314  # type: ignore[attr-defined]
    raise error


def guarded(name: str) -> None:
    """Replace one function of `os` by one that refuses what Windows refuses."""
    real = getattr(os, name)
    two = name in ("rename", "replace")

    def checked(path, *more, dir_fd=None, **options):  # type: ignore[no-untyped-def]
        if caller():
            target = full(path, dir_fd)
            if not os.path.islink(target):
                refuse_open(target)
            if two:
                refuse_name(more[0])
                if name == "rename" and os.path.lexists(more[0]):
                    raise FileExistsError(
                        errno.EEXIST, "Windows does not rename over an existing file", os.fsdecode(more[0])
                    )
                refuse_open(full(more[0]))
        return real(path, *more, **options) if dir_fd is None else real(path, *more, dir_fd=dir_fd, **options)

    function = unbound(checked)
    setattr(os, name, function)
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if real in known:
            known.add(function)


# --- replacements


class MemoryApi:
    """The part of kernel32 that edgekit uses."""

    @staticmethod
    def GlobalMemoryStatusEx(pointer: object) -> int:
        """Fill in the memory of the machine. Returns 0 if the caller did not set the length, like Windows."""
        status = pointer._obj  # type: ignore[attr-defined]
        if status.length != 64:
            return 0
        page = os.sysconf("SC_PAGE_SIZE")
        status.total = page * os.sysconf("SC_PHYS_PAGES")
        status.available = page * os.sysconf("SC_AVPHYS_PAGES")
        return 1


def locking(handle: int, mode: int, count: int) -> None:
    """The part of msvcrt.locking that edgekit uses."""
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
        """`import` as on the other system, for edgekit's modules."""
        asking = (globals or {}).get("__name__", "").partition(".")[0]
        if level == 0 and asking in OURS:
            if name.partition(".")[0] in HIDDEN_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r} on {SYSTEM}", name=name)
            if name in facades:
                return facades[name]
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = other_import  # type: ignore[assignment]

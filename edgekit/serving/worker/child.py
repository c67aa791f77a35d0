"""The process that runs one model for an agent. Started by `edgekit.serving.worker.runtime`, never by hand."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from edgekit.bundle.manifest import parse_manifest
from edgekit.errors import EdgekitError
from edgekit.protocols import Runtime
from edgekit.serving.worker.shared_memory import Channel, Failed, Load, Loaded, Ran, Run, SharedTensors, WorkerLostError

_OUT_OF_MEMORY_FIRST = b"500"  # when memory ends, the system takes a worker before the agent


def main(channel_fd: int, memory_fd: int, life_fd: int) -> None:
    """Serve the agent at the other ends until it closes them, or is gone.

    Args:
        channel_fd: Messages.
        memory_fd: Tensors.
        life_fd: A pipe whose other end the agent holds and never writes to.
    """
    _die_with_the_agent(life_fd)
    # A terminal's Ctrl-C and a service manager's stop reach the whole group; the agent drains and then says when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then the system chooses
        Path("/proc/self/oom_score_adj").write_bytes(_OUT_OF_MEMORY_FIRST)
    channel = Channel(socket.socket(fileno=channel_fd))
    with contextlib.suppress(WorkerLostError):  # the agent closed its end
        _serve(channel, SharedTensors(memory_fd))


def _die_with_the_agent(life_fd: int) -> None:
    """Have the system end this process when the pipe closes, whatever hangs here.

    SIGIO does what neither a thread nor a parent-death signal could: a thread needs the interpreter's lock, which hung
    native code may hold, and the signal comes when the *thread* that started this process ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends the process
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life_fd], [], [], 0)[0]:
        os._exit(0)  # it was gone before that


def _serve(channel: Channel, memory: SharedTensors) -> None:
    runtime: Runtime | None = None
    while True:
        message = channel.receive()
        try:
            if isinstance(message, Load):
                runtime = _open(message)
                asked, got = getattr(runtime, "providers", ((), ()))
                channel.send(Loaded(runtime.inputs, runtime.outputs, runtime.provider, asked, got))
            elif isinstance(message, Run) and runtime is not None:
                # The answers lie behind the inputs: a model may answer with the very memory that it was asked with.
                found = runtime.run(memory.read(message.inputs, copy=False))
                channel.send(Ran(memory.write(found, message.end)[0]))
        except EdgekitError as error:
            channel.send(Failed(type(error).__name__, str(error), error.advice))


def _open(message: Load) -> Runtime:
    module, _, name = message.loader.partition(":")
    loader: Callable[..., Runtime] = getattr(importlib.import_module(module), name)
    return loader(parse_manifest(message.manifest), Path(message.folder), **message.options)

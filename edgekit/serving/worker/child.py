"""The worker process, which runs one model for an agent. `edgekit.serving.worker.runtime` starts it."""

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

_OOM_SCORE = b"500"  # when memory is exhausted, Linux kills a worker before the agent


def main(channel_fd: int, memory_fd: int, life_fd: int) -> None:
    """Serve the agent until it closes its ends of the channel, or ends.

    Args:
        channel_fd: Socket for messages.
        memory_fd: Shared memory for tensors.
        life_fd: Pipe whose other end the agent keeps open and never writes to.
    """
    _end_with_the_agent(life_fd)
    # Ctrl-C and a service manager's stop reach the whole process group. The agent drains first, then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the system chooses which process to kill
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    channel = Channel(socket.socket(fileno=channel_fd))
    with contextlib.suppress(WorkerLostError):  # the agent closed its end
        _serve(channel, SharedTensors(memory_fd))


def _end_with_the_agent(life_fd: int) -> None:
    """Let the system end this process by SIGIO when the pipe closes, even while native code hangs.

    A thread cannot do this: it needs the interpreter's lock, which hung native code may hold. A parent-death signal
    cannot either: it comes when the *thread* that started this process ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action ends the process
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life_fd], [], [], 0)[0]:
        os._exit(0)  # the agent had ended before


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
                # Outputs are written after the inputs, because a model may return the memory of its inputs as output.
                outputs = runtime.run(memory.read(message.inputs, copy=False))
                channel.send(Ran(memory.write(outputs, message.end)[0]))
        except EdgekitError as error:
            channel.send(Failed(type(error).__name__, str(error), error.advice))


def _open(message: Load) -> Runtime:
    module, _, name = message.loader.partition(":")
    loader: Callable[..., Runtime] = getattr(importlib.import_module(module), name)
    return loader(parse_manifest(message.manifest), Path(message.folder), **message.options)
